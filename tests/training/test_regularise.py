"""L2 and clamps: what they do to weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from g2d.settings import HardenSettings
from g2d.tasks.inference import accuracy
from g2d.training.recipes import RECIPES
from hardening import step_of, trained


def norm_of(model: nn.Module) -> float:
    return sum(float(p.detach().square().sum()) for p in model.parameters() if p.dim() > 1) ** 0.5


@pytest.mark.parametrize("changes", [{"decay": 1.0}, {"decay": 0.0, "penalty": 1e-2}])
def test_l2_keeps_weights_small(digits, plain, changes):
    model = trained(digits, HardenSettings(recipe=("l2",), **changes))
    assert norm_of(model) < 0.9 * norm_of(plain)
    assert accuracy(model, digits.splits.gate) > 0.9


def test_decoupled_decay_shrinks_weights_and_not_biases(digits):
    step = RECIPES["l2"](step_of(digits, HardenSettings(decay=0.5)))
    before = {n: p.detach().clone() for n, p in step.model.named_parameters()}
    (after,) = step.after
    with torch.no_grad():
        after(step.model, 0.1)
    for name, parameter in step.model.named_parameters():
        factor = 0.95 if parameter.dim() > 1 else 1.0
        assert torch.allclose(parameter, before[name] * factor)


def test_the_penalty_is_half_the_sum_of_squares(digits):
    step = RECIPES["l2"](step_of(digits, HardenSettings(decay=0.0, penalty=0.5)))
    assert step.after == ()
    difference = step.loss() - step.replace(penalties=()).loss()
    assert torch.isclose(
        difference.detach(), torch.tensor(0.25 * norm_of(step.model) ** 2), atol=1e-4
    )


def test_clamped_layers_have_no_outliers(digits, plain):
    model = trained(digits, HardenSettings(recipe=("clamp",), clamp=2.0))

    def outlier(net: nn.Module) -> float:
        return max(
            float(p.detach().abs().max() / p.detach().square().mean().sqrt())
            for p in net.parameters()
            if p.dim() > 1
        )

    assert outlier(plain) > 3
    assert outlier(model) < 2.3  # the last cut lowers the root mean square a little
    assert accuracy(model, digits.splits.gate) > 0.9
