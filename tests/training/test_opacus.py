"""Opacus through the training seam: the example of docs/extending.md, with the real library."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn.utils import parameters_to_vector as weights

from g2d.settings import HardenSettings
from g2d.tasks.inference import accuracy
from g2d.training.loop import Batches
from g2d.training.recipes import HardenedTraining, try_out
from places import example

pytest.importorskip("opacus")
# Inputs need no gradient: torch says so whenever Opacus hooks the first layer.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


@pytest.fixture(autouse=True)
def shown(tmp_path, monkeypatch):
    (tmp_path / "private.py").write_text(example("Private training by Opacus"))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("private", None)


def trained(digits, steps):
    from private import Private  # type: ignore[import-not-found]

    recipe, generator = Private(), torch.Generator().manual_seed(0)
    batches = Batches(digits, digits.splits.train, 64, generator)
    training = HardenedTraining(digits, HardenSettings(), batches, steps, seed=0, extra=(recipe,))
    return training.run(digits.model(0), 3e-3), recipe


def test_dp_sgd_learns_and_knows_what_it_spent(digits):
    model, recipe = trained(digits, 200)
    assert accuracy(model, digits.splits.gate) > 0.6
    ((noise, share, steps),) = recipe.spent.history
    assert (noise, steps) == (1.0, 200)
    assert share == pytest.approx(64 / len(digits.splits.train))
    assert 0.5 < recipe.spent.get_epsilon(1e-5) < 20
    assert recipe.spent.get_epsilon(1e-5) > trained(digits, 20)[1].spent.get_epsilon(1e-5)


def test_the_same_seed_gives_the_same_bytes(digits):
    one, other = (trained(digits, 20)[0] for _ in range(2))
    assert torch.equal(weights(one.parameters()), weights(other.parameters()))


def test_no_example_moves_a_step_by_more_than_the_clip(digits):
    from opacus.optimizers import DPOptimizer

    model = digits.model(0)
    recipe = trained(digits, 1)[1]
    recipe.noise = 0.0
    generator = torch.Generator().manual_seed(0)
    batches = Batches(digits, digits.splits.train, 64, generator)
    seam = HardenedTraining(digits, HardenSettings(), batches, 1, seed=0, extra=(recipe,))
    optimizer = seam.optimizer(model, 3e-3)
    assert isinstance(optimizer, DPOptimizer)
    x, y = digits.splits.train.x[:1], digits.splits.train.y[:1]
    (1e6 * digits.loss(model(x), y)).backward()
    optimizer.pre_step()
    assert sum(p.summed_grad.square().sum() for p in model.parameters()) ** 0.5 <= 1.0001


def test_settings_name_it_as_any_other_recipe(digits):
    try_out(digits, HardenSettings(recipe=("private:Private",)))
