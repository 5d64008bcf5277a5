"""Opacus itself through the seam of recipes: its optimiser, a Poisson sampler and its hooks."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import g2d
from g2d.attacks.pools import craft_pool
from g2d.core.engine import SerialEngine
from g2d.errors import SettingsError
from g2d.settings import HardenSettings
from g2d.tasks.inference import accuracy
from g2d.training.loop import Batches, train
from g2d.training.recipes import HardenedTraining, Step, stale
from places import example

pytest.importorskip("opacus")
# Torch's, of the first layer: its input needs no gradient. Opacus does not look at that one.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

PRIVATE = HardenSettings(recipe=("private:Private",))


@pytest.fixture
def private(tmp_path, monkeypatch):
    """The module that docs/extending.md shows."""
    (tmp_path / "private.py").write_text(example("Private training (DP-SGD)"))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module("private")
    sys.modules.pop("private", None)


def training(task: g2d.Task, steps: int, settings: HardenSettings = PRIVATE) -> HardenedTraining:
    batches = Batches(task, task.splits.train, 64, torch.Generator().manual_seed(0))
    return HardenedTraining(task, settings, batches, steps, seed=0)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def clipped_by_hand(task: g2d.Task, x: torch.Tensor, y: torch.Tensor, clip: float) -> torch.Tensor:
    """The sum of the examples' gradients on a fresh model, each no longer than `clip`."""
    model = task.model(0).train()
    total = torch.zeros_like(weights(model))
    for one, label in zip(x.split(1), y.split(1), strict=True):
        found = torch.autograd.grad(task.loss(model(one), label), list(model.parameters()))
        gradient = torch.cat([g.flatten() for g in found])
        total += gradient * min(1.0, clip / float(gradient.norm()))
    return total


def test_a_step_follows_the_clipped_gradient_of_each_example(digits, private, monkeypatch):
    monkeypatch.setattr(private, "NOISE", 0.0)
    monkeypatch.setattr(private, "CLIP", 0.1)
    drawn = []
    plain = private.Poisson.draw
    monkeypatch.setattr(private.Poisson, "draw", lambda s: drawn.append(plain(s)) or drawn[-1])
    model, run = digits.model(0), training(digits, 1)
    train(model, run, steps=1, rate=0.01, optimizer=run.optimizer, between=(run.between,))
    ((x, y),) = drawn
    moved = weights(digits.model(0)) - weights(model)
    hand = clipped_by_hand(digits, x, y, 0.1)
    assert len(x) != 64, "its size is drawn; what divides is the expected one"
    torch.testing.assert_close(moved, 100 * 0.01 * hand / 64, rtol=1e-3, atol=1e-6)


def test_batches_are_drawn_example_by_example(digits, private):
    source = training(digits, 1).setup.batches
    sizes = [len(source.draw()[1]) for _ in range(300)]
    assert len(set(sizes)) > 20
    assert sum(sizes) / 300 == pytest.approx(64, rel=0.05)


def test_a_private_training_learns_and_says_what_it_has_spent(digits, private):
    models = []
    for _ in range(2):
        model, run = digits.model(0), training(digits, 300)
        run.run(model, rate=0.01)
        models.append(model)
    assert accuracy(models[0], digits.splits.gate) > 0.75
    assert torch.equal(*(weights(m) for m in models)), "the same seed gives the same bytes"
    ((_, recipe),) = run.recipes
    assert recipe.accountant.history == [(1.0, 64 / len(digits.splits.train), 300)]
    assert 1.0 < recipe.accountant.get_epsilon(1e-5) < 20.0
    few = training(digits, 20)
    few.run(digits.model(0), rate=0.01)
    ((_, brief),) = few.recipes
    assert brief.accountant.get_epsilon(1e-5) < recipe.accountant.get_epsilon(1e-5)


def test_noise_of_the_right_size_is_added(digits, private, monkeypatch):
    """Gradients of nothing are left: what moves the weights is noise alone."""
    monkeypatch.setattr(private, "CLIP", 1e-3)
    model, run = digits.model(0), training(digits, 1)
    train(model, run, steps=1, rate=0.01, optimizer=run.optimizer, between=(run.between,))
    before, after = digits.model(0), model
    monkeypatch.setattr(private, "NOISE", 0.0)
    quiet, run = digits.model(0), training(digits, 1)
    train(quiet, run, steps=1, rate=0.01, optimizer=run.optimizer, between=(run.between,))
    assert not torch.equal(weights(before), weights(after))
    noise = (weights(after) - weights(quiet)).std()
    assert float(noise) == pytest.approx(100 * 0.01 * 1e-3 / 64, rel=0.05)


def test_what_is_not_a_loss_of_single_examples_is_refused(digits, private):
    def summed(step: Step) -> Step:
        return step.replace(penalties=(next(step.model.parameters()).square().sum(),))

    for extra in (stale, summed):
        batches = Batches(digits, digits.splits.train, 8, torch.Generator().manual_seed(0))
        run = HardenedTraining(digits, PRIVATE, batches, 1, seed=0, extra=(extra,),
                               pools=[digits.splits.guide])  # fmt: skip
        with pytest.raises(SettingsError, match="clean examples alone"):
            run.run(digits.model(0), rate=0.01)


def test_a_population_is_trained_privately_and_attacked_afterwards(
    tmp_path, tiny_settings, private, digits
):
    settings = tiny_settings.override(
        harden__recipe=["private:Private"], population__recipe="seeds", population__rate=0.01
    )
    with g2d.Defence.create("digits", tmp_path / "v", settings) as defence:
        defence.populate(SerialEngine())
        assert defence.vault.entries("member")
    model, run = digits.model(0), training(digits, 3)
    run.run(model, rate=0.01)
    x = digits.splits.guide.x[:8].requires_grad_()
    F.cross_entropy(model(x), digits.splits.guide.y[:8]).backward()
    assert bool(x.grad.abs().sum() > 0), "no hook of Opacus is in the way of an attack"
    craft_pool(digits, model.requires_grad_(False), digits.splits.guide, 8, 2, 0)
