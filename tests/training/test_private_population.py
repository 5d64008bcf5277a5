"""A population of one private base and short forks; what is refused before anything is spent."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import g2d
from g2d.core.engine import SerialEngine
from g2d.errors import G2DError, PrivacyError, SettingsError
from g2d.settings import HardenSettings, PopulationSettings, PrivacySettings
from g2d.tasks.inference import accuracy
from g2d.tasks.shielded import Shield
from g2d.tasks.splits import Split
from g2d.training.charging import cost_of
from g2d.training.jobs import TrainingJob, _length
from g2d.training.loop import Batches
from g2d.training.population import build_population, fingerprint
from g2d.training.recipes import (
    HardenedTraining,
    Part,
    Private,
    PrivatePlan,
    Recipe,
    Setup,
    Step,
    check_private_training,
    find,
)
from g2d.training.recipes.monitor import TrainingMonitor
from g2d.training.recipes.private_public import learn_public
from g2d.vault.vault import Vault

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

SOURCE = ("digits", "", 0, 0.0)
FORKS = PopulationSettings(
    recipe="repelled", members=3, basins=1, early_steps=0, pool=16, pool_steps=1, batch=64
)
PRIVACY = PrivacySettings(
    enabled=True, records=800, batch=48, delta=1e-4, noise=0.8, steps=4, fork_steps=2
)


class Charges:
    """Takes what may be spent, then refuses."""

    def __init__(self, enough=99):
        self.enough, self.jobs = enough, []

    def __call__(self, job):
        if len(self.jobs) == self.enough:
            raise PrivacyError("the budget is used up")
        self.jobs.append(job)
        return {"charged": len(self.jobs)}


def build(vault, charges, **changes):
    return build_population(
        SOURCE, vault, replace(FORKS, **changes), SerialEngine(), charge=charges, privacy=PRIVACY
    )


def test_a_population_is_one_base_and_short_forks_each_paid_for_before(tmp_path):
    vault, charges = Vault.create(tmp_path / "v", ""), Charges(enough=3)
    with vault:
        with pytest.raises(PrivacyError, match="used up"):
            build(vault, charges)
        assert len(vault.entries("member")) == 1, "what is paid for is kept"
        assert [job.kind for job in charges.jobs] == ["base", "early", "member"]
        early = vault.entry("early", 0)
        assert vault.read(early) == vault.read(vault.entry("base")), "no step of its own"
        again = Charges()
        members = build(vault, again)
        assert [(j.kind, j.index) for j in again.jobs] == [("member", 1), ("member", 2)]
        assert len({vault.read(entry) for entry in members}) == 3
        assert [entry.info["charged"] for entry in members] == [3, 1, 2]
        for job in again.jobs:
            assert not job.pools, "attacks on other people's records are in no step"
            assert len(job.released) == 2, "the base, and the early checkpoint that is the base"
        info = vault.entry("base").info
        assert "checks" not in info
    spent = [cost_of(j.kind, j.index, PRIVACY, FORKS) for j in charges.jobs]
    assert [[(s.noise, s.rate, s.count) for s in one] for one in spent] == [
        [(0.8, 48 / 800, 4)], [], [(3.0, 48 / 800, 2)],
    ]  # fmt: skip


def test_a_kept_population_is_of_its_privacy_and_plain_ones_are_what_they_were():
    harden = HardenSettings()
    plain = fingerprint(FORKS, harden, None)
    private = fingerprint(FORKS, harden, None, privacy=PRIVACY)
    assert plain != private
    assert private == fingerprint(FORKS, harden, None, privacy=replace(PRIVACY, epsilon=1.0))
    assert private != fingerprint(FORKS, harden, None, privacy=replace(PRIVACY, noise=0.7))


def trained(task, privacy, steps, harden=None):
    batches = Batches(task, task.splits.train, 64, torch.Generator().manual_seed(0))
    run = HardenedTraining(
        task, harden or HardenSettings(), batches, steps, seed=0,
        private=Private(PrivatePlan(privacy, privacy.noise)),
    )  # fmt: skip
    return run.run(task.model(0), 0.02)


def test_it_learns(digits):
    model = trained(digits, replace(PRIVACY, batch=96, clip=1.0, noise=0.5), 60)
    assert accuracy(model, digits.splits.gate) > 0.5


def test_no_look_at_raw_data_chooses_a_checkpoint(digits, monkeypatch):
    def looked(*_):
        raise AssertionError("a look at the guide split")

    monkeypatch.setattr(TrainingMonitor, "look", looked)
    harden = HardenSettings(recipe=("l2", "adversarial"), steps=1, checks=2)
    assert trained(digits, PRIVACY, 2, harden) is not None


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"records": 0}, "records is missing"),
        ({"batch": 800}, "sampling rate of 1, and it has to be below 1: lower batch"),
        ({"batch": 1600}, "sampling rate of 2"),
        ({"delta": 1 / 800}, "is not below 1 in 800 records"),
        ({"noise": 0.0}, "noise = 0 hides nothing"),
        ({"fork_noise": 0.0}, "fork_noise = 0 hides nothing"),
    ],
)
def test_numbers_that_prove_nothing_are_refused(digits, changes, message):
    refused(digits, message, privacy=replace(PRIVACY, **changes))


def per_record_noise(step: Step) -> Step:
    return step.replace(x=step.x + 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": ("distil",)}, "'distil' cannot be part .* its teacher may have learned"),
        ({"recipe": ("watermark",)}, "'watermark' cannot be part .* learns triggers"),
        ({"recipe": (f"{__name__}:per_record_noise",)}, "it may mix examples"),
        ({"recipe": ("l2",), "penalty": 0.1}, "belongs to no record"),
        ({"recipe": ("adversarial",), "method": "trades"}, "'trades' is not learned record by"),
    ],
)
def test_recipes_that_may_mix_examples_are_refused(digits, changes, message):
    refused(digits, message, harden=HardenSettings(**changes))


def test_what_would_be_paid_for_twice_is_refused(digits):
    refused(digits, "set basins = 1 and early_steps = 0", population=PopulationSettings())
    refused(digits, r"\[watermark\] key is set", marked=True)
    with pytest.raises(SettingsError, match=r"\[privacy\] enabled = true makes all training so"):
        find("private")


def refused(task, message, privacy=PRIVACY, population=FORKS, harden=None, marked=False):
    with pytest.raises(SettingsError, match=message) as caught:
        check_private_training(task, privacy, population, harden or HardenSettings(), marked)
    assert "\n" not in str(caught.value)


class OwnMean(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Tally(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += len(x)
        return x


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.BatchNorm2d(1), r"BatchNorm2d \(0\), .* needs nn.GroupNorm"),
        (lambda: nn.BatchNorm2d(1, track_running_stats=False), "needs nn.GroupNorm"),
        (lambda: nn.InstanceNorm2d(1, track_running_stats=True), "needs nn.GroupNorm"),
        (OwnMean, "changes with the others of its batch"),
        (Tally, r"changes its buffer '0.seen' as it runs"),
    ],
)
def test_models_that_bring_records_together_are_refused(digits, layer, message):
    task = replace(digits, factory=lambda: nn.Sequential(layer(), nn.Flatten(), nn.Linear(64, 10)))
    refused(task, message)


def test_models_whose_records_can_be_told_apart_pass(digits):
    def model():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Flatten(), nn.Linear(144, 10),
        )  # fmt: skip

    check_private_training(
        replace(digits, factory=model), PRIVACY, FORKS, HardenSettings(recipe=("l2", "clamp"))
    )


def test_missing_packages_name_the_extra(digits, monkeypatch):
    for package, message in (
        ("opacus.optimizers", r"needs opacus 1.6 .*pip install 'g2d\[privacy\]'"),
        ("dp_accounting", r"needs dp-accounting 0.6 .*pip install 'g2d\[privacy\]'"),
    ):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(G2DError, match=message):
                check_private_training(digits, PRIVACY, FORKS, HardenSettings())


class Shifted(Recipe):
    """Of each record by itself, and says so."""

    per_record = True

    def __call__(self, step: Step) -> Step:
        return step.replace(x=step.x + 0.1)


class Liar(Shifted):
    def __call__(self, step: Step) -> Step:
        return step.add(Part(step.x, step.criterion))


class OwnSampler(Shifted):
    def prepare(self, setup: Setup) -> Setup:
        return setup.replace(batches=object())


class OwnHook(Shifted):
    def prepare(self, setup: Setup) -> Setup:
        return setup.replace(between=(lambda *_: None,))


def test_an_own_recipe_may_change_each_record_by_itself_and_nothing_else(digits):
    def check(kind):
        harden = HardenSettings(recipe=(f"{__name__}:{kind.__name__}",))
        check_private_training(digits, PRIVACY, FORKS, harden)

    check(Shifted)
    with pytest.raises(SettingsError, match="a recipe changed parts of a private step"):
        check(Liar)
    for kind in (OwnSampler, OwnHook):
        with pytest.raises(SettingsError, match="draws its batches and finds its gradients"):
            check(kind)


def test_a_defence_is_refused_before_there_is_a_vault(tmp_path, tiny_settings):
    settings = tiny_settings.override(privacy__enabled=True, privacy__records=800)
    with pytest.raises(G2DError):
        g2d.Defence.create("digits", tmp_path / "v", settings)
    assert not (tmp_path / "v").exists()


# --- where it begins -----------------------------------------------------------------------------


def test_it_may_begin_at_what_public_records_have_taught_and_at_nobody_elses(digits, tmp_path):
    np.save(tmp_path / "x.npy", digits.splits.test.x.numpy())
    np.save(tmp_path / "y.npy", digits.splits.test.y.numpy())
    task = Shield(str(tmp_path), b"k" * 32).over(digits)
    model, fresh = task.model(0), task.model(0)
    learn_public(task, model, 0, FORKS, 0)
    assert same_weights(model, fresh)
    learn_public(task, model, 60, FORKS, 0)
    assert accuracy(model, task.splits.guide) > 0.5
    again, others = task.model(0), replace(task, splits=without_people(task.splits))
    learn_public(others, again, 60, FORKS, 0)
    assert same_weights(model, again), "no record of anybody's was read"
    refused(digits, "none are kept apart in task 'digits'", replace(PRIVACY, public_steps=5))


def same_weights(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def without_people(splits):
    found = copy.copy(splits)
    empty = Split(torch.zeros_like(splits.train.x), splits.train.y.flip(0))
    object.__setattr__(found, "train", empty)
    return found


def test_a_whole_private_training_has_a_rate_of_its_own(digits):
    job = TrainingJob(
        SOURCE, "base", 0, 0, "base", replace(FORKS, rate=0.5, fork_rate=0.25), None, (),
        privacy=replace(PRIVACY, rate=0.125),
    )  # fmt: skip
    assert _length(job) == (PRIVACY.steps, 0.125)
    assert _length(replace(job, kind="member", recipe="repelled")) == (PRIVACY.fork_steps, 0.25)
