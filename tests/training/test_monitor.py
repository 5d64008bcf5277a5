"""The looks that a training takes at itself: the guard, early stopping, the weights kept."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from g2d.errors import PopulationError
from g2d.settings import HardenSettings
from g2d.training.loop import Batches, NextStep, train
from g2d.training.recipes import HardenedTraining
from g2d.training.recipes.monitor import Check, TrainingMonitor


def test_catastrophic_overfitting_is_told_from_a_weak_and_from_a_robust_model():
    assert Check(0.5, 0.3, 0.99, 0.95, 0.02).collapsed
    assert Check(0.5, 0.3, 1.0, 1.0, 0.0).collapsed  # two classes: FGSM cannot exceed 100 %
    assert not Check(0.5, 0.3, 0.99, 0.05, 0.0).collapsed
    assert not Check(0.5, 0.3, 0.99, 0.95, 0.80).collapsed


class Collapsing(TrainingMonitor):
    """Every look after half of the training finds a collapse."""

    def look(self, model, done, eps):
        check = Check(done, eps, 0.99, 0.95, 0.01 if done > 0.5 else 0.9)
        self.checks.append(check)
        self.states = [*getattr(self, "states", []), model.state_dict()["0.weight"].clone()]
        return check


@pytest.mark.parametrize("guard", ["stop", "switch", "off"])
def test_the_guard_stops_or_goes_on_with_pgd(digits, guard):
    settings = HardenSettings(
        recipe=("adversarial",), method="fgsm", guard=guard, ramp=0.0, steps=2, patience=6
    )
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    training = HardenedTraining(digits, settings, batches, 20, seed=0)
    training.monitor = Collapsing(digits, settings, 0)
    run = partial(train, model, training, steps=20, rate=1e-3, after=training.after)
    if guard == "stop":
        with pytest.raises(PopulationError, match=r"catastrophic overfitting at 60%.*1\.0% under"):
            run()
        return
    run()
    assert training.settings.method == ("pgd" if guard == "switch" else "fgsm")
    assert training.switched == (0.6 if guard == "switch" else None)
    assert len(training.monitor.checks) == 10  # what was waited for before the switch is forgiven


def test_a_switch_goes_back_to_what_was_sound_and_forgets_the_optimisers_past(digits):
    settings = HardenSettings(recipe=("adversarial",), method="fgsm", ramp=0.0, steps=2, checks=4)
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    training = HardenedTraining(digits, settings, batches, 8, seed=0)
    training.monitor = monitor = Collapsing(digits, settings, 0)
    for taken in range(1, 7):
        training(model)
        with torch.no_grad():
            model.get_parameter("0.weight").add_(1.0)
        turn = training.after(model, 1e-3)
        assert turn is (NextStep.AFRESH if taken == 6 else NextStep.GO_ON)
    assert torch.equal(model.get_parameter("0.weight"), monitor.states[1])  # of the look at half


@pytest.mark.parametrize("checks", [1, 4])
def test_a_collapse_that_nothing_sound_precedes_or_follows_is_an_error(digits, checks):
    class Collapsed(TrainingMonitor):
        def look(self, model, done, eps):
            self.checks.append(Check(done, eps, 0.99, 0.95, 0.01))
            return self.checks[-1]

    settings = HardenSettings(recipe=("adversarial",), method="fgsm", ramp=0.0, checks=checks)
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    training = HardenedTraining(digits, settings, batches, 8, seed=0)
    training.monitor = Collapsed(digits, settings, 0)
    train(model, training, steps=8, rate=1e-3, after=training.after)
    assert training.switched == 1 / checks
    assert not training.monitor.best, "a collapsed look was kept"
    with pytest.raises(PopulationError, match=r"1\.0% under PGD.*no look found a sound model"):
        training.finish(model)


def test_a_fork_that_collapses_at_its_first_look_goes_back_to_its_start(digits):
    class Beginning(TrainingMonitor):
        def look(self, model, done, eps):
            self.checks.append(Check(done, eps, 0.99, 0.95, 0.9 if done == 0 else 0.01))
            return self.checks[-1]

    settings = HardenSettings(recipe=("adversarial",), method="fgsm", steps=2, checks=4)
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    start = {name: t.clone() for name, t in model.state_dict().items()}
    training = HardenedTraining(digits, settings, batches, 8, seed=0, begun=True)
    training.monitor = Beginning(digits, settings, 0)
    train(model, training, steps=8, rate=1e-3, after=training.after)
    training.finish(model)
    assert training.switched == 0.25
    assert all(torch.equal(t, start[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(("steps", "checks"), [(25, 10), (19, 10), (3, 10), (20, 0)])
def test_looks_are_as_many_as_asked_for_and_the_last_is_at_the_end(digits, steps, checks):
    settings = HardenSettings(recipe=("adversarial",), checks=checks)
    training = HardenedTraining(
        digits, settings, Batches(digits, digits.splits.train, 8, torch.Generator()), steps, seed=0
    )
    assert len(training.looks) == min(checks, steps)
    assert not checks or max(training.looks) == steps


def test_training_ends_early_and_keeps_the_most_robust_weights(digits):
    class Declining(TrainingMonitor):
        def look(self, model, done, eps):
            self.kept = getattr(self, "kept", None) or {
                n: t.clone() for n, t in model.state_dict().items()
            }
            return Check(done, eps, 0.9, 0.9, 0.9 - done)

    settings = HardenSettings(recipe=("adversarial",), steps=1, patience=3, checks=10, ramp=0.0)
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    training = HardenedTraining(digits, settings, batches, 20, seed=0)
    training.monitor = monitor = Declining(digits, settings, 0)
    train(model, training, steps=20, rate=1e-3, after=training.after)
    assert training._taken == 8
    training.finish(model)
    assert all(torch.equal(t, monitor.kept[n]) for n, t in model.state_dict().items())


def test_looks_use_the_guide_split_alone(digits, hardened):
    ruined = replace(
        digits,
        splits=replace(
            digits.splits,
            gate=replace(digits.splits.gate, x=digits.splits.gate.x * 0),
            test=replace(digits.splits.test, x=digits.splits.test.x * 0),
        ),
    )
    settings = HardenSettings(recipe=("adversarial",))
    one, other = (
        TrainingMonitor(task, settings, 3).look(hardened, 1.0, 0.15) for task in (digits, ruined)
    )
    assert one == other
