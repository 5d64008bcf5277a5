"""Forks of a private base that are given public data alone: they cost nothing, and read nobody."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from g2d.core.engine import SerialEngine
from g2d.errors import SettingsError
from g2d.settings import HardenSettings, PopulationSettings, PrivacySettings, Settings
from g2d.tasks.shielded import Shield
from g2d.tasks.splits import Split
from g2d.training.charging import cost_of, reads_people
from g2d.training.federated.private import check_private
from g2d.training.jobs import REFRESHING, TrainingJob, _length, run_job
from g2d.training.population import build_population, fingerprint
from g2d.training.recipes import Step, check_private_training, divergence
from g2d.training.recipes.private_forks import KeepBase, without_people
from g2d.vault.vault import Vault

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

FORKS = PopulationSettings(
    recipe="repelled", members=2, basins=1, early_steps=0, fork_steps=3, fork_rate=0.01, pool=16,
    pool_steps=1, batch=32, sources=2,
)  # fmt: skip
PRIVACY = PrivacySettings(
    enabled=True, records=800, batch=48, delta=1e-4, noise=0.8, steps=2, forks="public"
)


@pytest.fixture(scope="module")
def apart(digits, tmp_path_factory):
    """Digits whose people are apart from public records."""
    folder = tmp_path_factory.mktemp("public")
    np.save(folder / "x.npy", digits.splits.test.x.numpy())
    np.save(folder / "y.npy", digits.splits.test.y.numpy())
    return Shield(str(folder), b"k" * 32).over(digits)


def of_others(task):
    """The task as it would be, had other people given their records; test data are theirs, too."""
    splits = copy.copy(task.splits)
    for name in ("train", "test"):
        own = getattr(splits, name)
        other = Split(torch.rand_like(own.x), (own.y + 1) % task.classes)
        object.__setattr__(splits, name, other)
    return replace(task, splits=splits)


def test_forks_on_public_data_are_free_and_the_same_whoever_gave_records(apart, tmp_path):
    jobs = []

    def charge(job):
        jobs.append(job)
        return {}

    with Vault.create(tmp_path / "v", "") as vault:
        members = build_population(
            apart, vault, FORKS, SerialEngine(), charge=charge, privacy=PRIVACY
        )
        kept = [(vault.read(entry), vault.read(entry, "attacks")) for entry in members]
    owed = [one for job in jobs for one in cost_of(job.kind, job.index, PRIVACY, FORKS)]
    assert [(one.what, one.noise, one.count) for one in owed] == [("base", 0.8, 2)]
    assert [entry.info["learned"] for entry in members] == ["public", "public"]
    forks = [job for job in jobs if job.kind == "member"]
    assert all(job.base and job.pools and not job.released for job in forks)
    assert len({weights for weights, _ in kept}) == 2
    for job, (weights, attacks) in zip(forks, kept, strict=True):
        again = run_job(replace(job, task=of_others(apart)))
        assert (again.weights, again.attacks) == (weights, attacks), "nobody's record was read"


def test_basins_of_their_own_are_free_too(apart, tmp_path):
    many = replace(FORKS, basins=2, early_steps=3)
    jobs = []

    def charge(job):
        jobs.append(job)
        return {}

    with Vault.create(tmp_path / "v", "") as vault:
        build_population(apart, vault, many, SerialEngine(), charge=charge, privacy=PRIVACY)
        early = [(vault.read(entry), entry.info["learned"]) for entry in vault.entries("early")]
    assert [bool(cost_of(job.kind, job.index, PRIVACY, many)) for job in jobs] == [
        True, False, False, False, False,
    ]  # fmt: skip
    assert [learned for _, learned in early] == ["public", "public"]
    for job, (weights, _) in zip([j for j in jobs if j.kind == "early"], early, strict=True):
        assert job.start is None, "it begins at fresh weights"
        assert job.base is not None, "and learns what the base answers"
        assert run_job(replace(job, task=of_others(apart))).weights == weights


def test_what_is_charged_is_what_reads_people():
    def of(kind, recipe="repelled", privacy=PRIVACY):
        charged = cost_of(kind, 0, privacy, replace(FORKS, recipe=recipe, early_steps=9))
        assert bool(charged) == reads_people(kind, recipe, privacy)
        return bool(charged)

    assert of("base")
    assert not of("member")
    assert not of("early")
    assert of("member", recipe="seeds"), "its first step is at fresh weights"
    assert of(REFRESHING), "new records are people's"
    assert of("member", privacy=replace(PRIVACY, forks="private"))


def test_a_training_that_reads_nobody_finds_nobody(apart):
    splits = without_people(apart).splits
    known = torch.cat([apart.splits.guide.x, apart.splits.gate.x])
    public = {row.numpy().tobytes() for row in known}
    for part in (splits.train, splits.guide, splits.gate, splits.test, splits.guiding):
        assert {row.numpy().tobytes() for row in part.x} <= public
    assert splits.held is None


def test_forks_have_the_populations_length_and_rate(apart):
    job = TrainingJob(apart, "member", 0, 0, "repelled", FORKS, None, (), privacy=PRIVACY)
    assert _length(job) == (3, 0.01)
    assert _length(replace(job, kind=REFRESHING)) == (PRIVACY.fork_steps, 0.01)


def test_a_vault_goes_on_with_the_forks_that_it_began_with():
    def of(privacy):
        return fingerprint(FORKS, HardenSettings(), None, privacy=privacy)

    private = replace(PRIVACY, forks="private")
    assert of(private) != of(PRIVACY)
    assert of(replace(PRIVACY, soft=0.5)) != of(PRIVACY)
    assert of(replace(private, soft=0.5)) == of(private)


# --- what a fork learns --------------------------------------------------------------------------


def step_of(task, model, size=8):
    x, y = task.splits.guide.x[:size], task.splits.guide.y[:size]
    draws = torch.Generator().manual_seed(0)
    return Step(
        model, task, HardenSettings(), 0.0, 0.0, draws, (), None, x, y, y,
        lambda logits: task.loss_of(logits, y),
    )  # fmt: skip


def test_a_fork_that_answers_as_the_base_does_has_learned_it(apart):
    base, other = apart.model(0).eval(), apart.model(1).eval()
    with torch.no_grad():
        same = KeepBase(base, 1.0)(step_of(apart, base)).loss()
        unlike = KeepBase(base, 1.0)(step_of(apart, other)).loss()
    assert float(same) == pytest.approx(0.0, abs=1e-6)
    assert float(unlike) > 1e-3
    given = step_of(apart, base)
    assert KeepBase(base, 0.0)(given) is given


def test_labels_and_answers_are_learned_in_shares_on_inputs_and_mixtures(apart):
    base, model = apart.model(0).eval(), apart.model(1).eval()
    given = step_of(apart, model)
    step = KeepBase(base, 0.75)(given)
    with torch.no_grad():
        own = model(given.x)
        soft = divergence(own, base(given.x).softmax(1))
        wanted = 0.75 * soft + 0.25 * apart.loss_of(own, given.y)
        assert float(step.criterion(own)) == pytest.approx(float(wanted))
    (mixed,) = step.parts
    low, high = given.x.amin(0) - 1e-6, given.x.amax(0) + 1e-6
    assert bool(((mixed.x >= low) & (mixed.x <= high)).all())
    assert not torch.equal(mixed.x, given.x)
    tokens = replace(apart, attack=lambda model, x, y, generator: x)
    assert KeepBase(base, 0.75)(replace(given, task=tokens)).parts == ()


# --- what is refused -----------------------------------------------------------------------------


def test_without_public_data_or_forks_there_are_no_public_forks(digits, apart):
    for task, population, message in (
        (digits, FORKS, r"none are kept apart in task 'digits': name a folder in \[privacy\]"),
        (apart, replace(FORKS, recipe="seeds"), "'seeds' makes no forks"),
    ):
        with pytest.raises(SettingsError, match=message) as caught:
            check_private_training(task, PRIVACY, population, HardenSettings())
        assert "\n" not in str(caught.value)


def test_clients_of_a_federation_have_no_public_forks(digits):
    settings = Settings().override(privacy__enabled=True, privacy__forks="public")
    with pytest.raises(SettingsError, match="a client has records of people alone"):
        check_private(digits, settings)
