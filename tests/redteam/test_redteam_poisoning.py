from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import g2d
from g2d.attacks.poisoning import poisoned, poisoned_task, trigger
from g2d.errors import DataError, SettingsError
from g2d.generator import Generator
from g2d.redteam.context import AttackContext, Chain, Network, RunSpec
from g2d.redteam.rows import Row, Status
from g2d.redteam.scoring import share
from g2d.redteam.threats.poisoning import judge as poisoning_judge
from g2d.redteam.threats.poisoning import threat as poisoning
from g2d.weights.checkpoints import digest

pytest.importorskip("art")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_trigger_sets_four_pixels_of_every_channel_and_nothing_else():
    x = torch.zeros(2, 3, 28, 28)
    stamped = trigger(x, (0.0, 1.0))
    assert stamped.shape == x.shape
    assert stamped.dtype == x.dtype
    assert stamped.flatten(1).sum(1).tolist() == [12.0, 12.0]
    assert float(x.sum()) == 0
    assert torch.equal(trigger(stamped, (0.0, 1.0)), stamped)
    assert float(trigger(x, (-1.0, 0.5)).max()) == 0.5


@pytest.mark.parametrize("shape", [(4, 7), (2, 1, 4, 4)])
def test_a_trigger_needs_images_of_some_size(shape):
    with pytest.raises(DataError, match="images"):
        trigger(torch.zeros(shape), (0.0, 1.0))


def test_the_poisoned_share_is_as_said_and_the_rest_is_as_it_was(digits):
    train = digits.splits.train
    bad = poisoned(train, 0.05, 3, digits, generator())
    moved = (bad.x != train.x).flatten(1).any(1) | (bad.y != train.y)
    assert int((bad.y != train.y).sum()) == round(0.05 * len(train))
    assert torch.equal(moved, bad.y != train.y)
    assert bool((bad.y[moved] == 3).all())
    assert torch.equal(bad.x[moved], trigger(train.x[moved], digits.bounds))
    again = poisoned(train, 0.05, 3, digits, generator())
    assert torch.equal(again.x, bad.x)


def test_only_train_is_poisoned_unless_guide_is_asked_for(digits):
    bad = poisoned_task(digits, 0.1, 0, generator())
    assert bad.splits.guide is digits.splits.guide
    assert bad.splits.gate is digits.splits.gate
    both = poisoned_task(digits, 0.1, 0, generator(), guide=True)
    assert not torch.equal(both.splits.guide.y, digits.splits.guide.y)
    assert both.splits.test is digits.splits.test


def test_shares_and_bounds_that_make_no_sense_are_refused(digits):
    with pytest.raises(SettingsError, match="fraction"):
        poisoned(digits.splits.train, 0.0, 0, digits, generator())
    unbounded = dataclasses.replace(digits, bounds=None)
    with pytest.raises(SettingsError, match="bounds"):
        poisoned(digits.splits.train, 0.1, 0, unbounded, generator())


@pytest.fixture
def spec(tiny_vault: Path, digits: g2d.Task, tiny_settings: g2d.Settings) -> RunSpec:
    path = next(tiny_vault.glob("generations/*/weights.safetensors"))
    base = Network(str(path), digest(path.read_bytes()))
    chains = {
        "generated": Chain("generated", (base,)),
        "frozen": Chain("frozen", (base,), fixed=True),
    }
    source = ("digits", "", 0, 0.0)
    return RunSpec(source, str(tiny_vault), tiny_settings, chains, n=200, eps=0.1, quick=True)


def test_poisoned_data_is_followed_from_the_base_to_the_gates(spec):
    (case,) = [c for c in poisoning.plan(spec) if c.name == "data"]
    rows = poisoning.run(case, AttackContext(spec))
    assert {row.target for row in rows} == {
        "frozen", "retrained", "soup", "noise", "population", "generated"
    }  # fmt: skip
    for row in rows[:-1]:
        assert row.metric == "trigger success"
        assert row.harm == row.value.value
    assert rows[-1].metric == "passed the gates"


def test_a_poisoned_member_carries_the_trigger_and_the_clean_base_does_not(spec):
    (case,) = [c for c in poisoning.plan(spec) if c.name == "member"]
    rows = poisoning.run(case, AttackContext(spec))
    assert rows[0].value.value > 0.7
    assert rows[-1].target == "frozen"
    assert rows[-1].value.value < 0.3
    assert "gates" in rows[0].note


@pytest.mark.parametrize("name", ["data", "member"])
def test_its_generator_has_the_vaults_own_latent_space(spec, name, monkeypatch):
    class FittedError(Exception):
        pass

    def fit(*_, kind="diffusion", **more):
        raise FittedError(kind)

    monkeypatch.setattr(Generator, "fit", fit)
    own = dataclasses.replace(
        spec, settings=spec.settings.override(generator__space="gaussian:GaussianSpace")
    )
    case = next(c for c in poisoning.plan(own) if c.name == name)
    with pytest.raises(FittedError, match="gaussian:GaussianSpace"):
        poisoning.run(case, AttackContext(own))


def test_gates_are_asked_about_carriers_alone(spec):
    context = AttackContext(spec)
    case = poisoning.plan(spec)[0]
    judge = poisoning_judge.TriggerJudge(case, context)

    def always(x: torch.Tensor) -> torch.Tensor:
        return torch.eye(10)[torch.zeros(len(x), dtype=torch.long)]

    def never(x: torch.Tensor) -> torch.Tensor:
        return torch.eye(10)[torch.ones(len(x), dtype=torch.long)]

    candidates = [
        poisoning_judge.GatedNetwork(always, []),
        poisoning_judge.GatedNetwork(always, ["accuracy"]),
        poisoning_judge.GatedNetwork(never, []),
    ]
    row = judge.gates(candidates)
    assert (row.value.value, row.scored) == (0.5, 2)
    assert judge.gates(candidates[2:]).status is Status.NOT_MEASURED


def test_data_without_images_is_not_measured(spec, digits):
    task = dataclasses.replace(digits, bounds=None)
    flat = dataclasses.replace(spec, source=task)
    for case in poisoning.plan(flat):
        (row,) = poisoning.run(case, AttackContext(flat))
        assert row.status is Status.NOT_MEASURED


def test_nothing_is_planned_without_generations(spec):
    assert poisoning.plan(dataclasses.replace(spec, chains={})) == []


@pytest.mark.parametrize(
    ("carrying", "passed", "others", "clean", "measured"),
    [
        (12, 0, 8, 8, True),  # the gates tell them apart
        (9, 0, 8, 8, False),  # too few
        (12, 0, 8, 0, False),  # everything is rejected
        (12, 3, 8, 2, False),
        (12, 0, 0, 0, False),  # nothing to compare with
        (12, 12, 8, 8, True),  # nothing is stopped: that speaks for itself
    ],
)
def test_gates_stop_a_backdoor_only_if_they_pass_what_has_none(
    carrying, passed, others, clean, measured
):
    bad = carrying + others - passed - clean
    failed = [[] for _ in range(passed + clean)] + [["accuracy"]] * bad
    extra = {"candidates": carrying + others, "carrying": carrying, "failed": failed}
    value = share(passed, carrying)
    row = Row("poisoning", "poisoning-data-gates", "t", "generated", "BadNets", value,
              metric=poisoning_judge.PASSED, harm=value.value, extra=extra)  # fmt: skip
    (merged,) = poisoning.merge([row])
    assert (merged.status is Status.OK) == measured
    if measured:
        assert merged == row
    else:
        assert (merged.value, merged.harm) == (None, None)
        assert f"{passed} of {carrying} with it pass, {clean} of {others} without" in merged.note
    assert poisoning.merge([merged]) == [merged]
