"""Adversarial training: what each method makes robust, and against which ball."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from g2d.settings import HardenSettings, PopulationSettings
from g2d.tasks.inference import accuracy
from g2d.training.loop import Batches
from g2d.training.population import TrainingJob, extra_recipes
from g2d.training.recipes import HardenedTraining, stale
from g2d.training.recipes.adversarial import adversarial
from hardening import robust, step_of, trained


def test_adversarial_training_makes_robust_what_plain_training_leaves_open(digits, plain, hardened):
    assert robust(digits, plain) < 0.3
    assert robust(digits, hardened) > robust(digits, plain) + 0.3
    assert accuracy(hardened, digits.splits.gate) > 0.9


def test_robust_accuracy_falls_to_zero_as_eps_grows(digits, hardened):
    rates = [robust(digits, hardened, eps) for eps in (0.0, 0.15, 0.3, 0.8)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"method": "trades"}, {"method": "fgsm"}, {"clean": 0.5}])
def test_every_method_hardens(digits, plain, changes):
    settings = HardenSettings(recipe=("adversarial",), steps=4, **changes)
    assert robust(digits, trained(digits, settings)) > robust(digits, plain) + 0.25


def test_the_two_norm_hardens_against_its_own_ball(digits, plain):
    settings = HardenSettings(recipe=("adversarial",), steps=4, norm="2", eps=0.8)
    model = trained(digits, settings)
    assert robust(digits, model, 0.8, "2") > robust(digits, plain, 0.8, "2") + 0.2


def test_attacks_of_a_step_stay_in_their_ball_and_leave_the_model_as_it_was(digits):
    for norm, eps in (("inf", 0.1), ("2", 0.7)):
        step = step_of(digits, HardenSettings(norm=norm, steps=3), eps=eps)
        step.model.train()
        attacks = step.attack()
        delta = (attacks - step.x).flatten(1)
        length = delta.abs().amax(1) if norm == "inf" else delta.norm(dim=1)
        assert (length <= eps + 1e-5).all()
        assert (length > 0.5 * eps).all()
        assert step.model.training
        assert all(p.requires_grad and p.grad is None for p in step.model.parameters())


def test_eps_rises_and_a_fork_of_a_robust_start_meets_it_at_once(digits, plain, hardened):
    settings = HardenSettings(recipe=("adversarial",), ramp=0.5, steps=1)
    batches = Batches(digits, digits.splits.train, 8, torch.Generator())
    rising = HardenedTraining(digits, settings, batches, 10, seed=0)
    assert [round(rising.eps_at(d) / digits.eps, 2) for d in (0.0, 0.25, 0.5, 1.0)] == [
        0, 0.5, 1, 1,
    ]  # fmt: skip
    for model, share in ((hardened, 1.0), (plain, 0.2)):
        fork = HardenedTraining(digits, settings, batches, 10, seed=0, begun=True)
        fork(model)
        assert fork.eps_at(0.1) == pytest.approx(share * digits.eps)


def test_trades_learns_its_own_predictions_on_attacks(digits):
    step = adversarial(step_of(digits, HardenSettings(method="trades", steps=2, beta=3.0)))
    assert step.clean == 0
    (part,) = step.parts
    assert len(part.x) == 2 * len(step.x)
    logits = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    same = torch.cat([logits[:8], logits[:8]])
    assert torch.isclose(part.loss(same), F.cross_entropy(logits[:8], step.y))
    kl = F.kl_div(
        logits[8:].log_softmax(1), logits[:8].softmax(1), reduction="batchmean"
    )  # fmt: skip
    assert torch.isclose(part.loss(logits), F.cross_entropy(logits[:8], step.y) + 3 * kl)


def test_repelled_and_adversarial_are_one_step(digits):
    pool = digits.splits.guide.take(range(16))
    settings = HardenSettings(recipe=("adversarial",), stale=0.5)
    job = TrainingJob(
        digits, "member", 0, 0, "repelled", PopulationSettings(), None, (), (), settings
    )
    assert extra_recipes(job, digits) == (stale,)
    step = adversarial(stale(step_of(digits, settings, pools=(pool,))))
    assert [len(part.x) for part in step.parts] == [8, 8]
    assert step.clean == 0
    assert torch.isfinite(step.loss())
    assert len(extra_recipes(replace(job, harden=HardenSettings()), digits)) == 2
    assert extra_recipes(replace(job, recipe="forks"), digits) == ()
