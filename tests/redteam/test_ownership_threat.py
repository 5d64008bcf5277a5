"""Removal of the watermark: a marked network keeps it or loses it, at a price; others had none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from g2d.protect.watermark import WatermarkKey
from g2d.protect.watermark.mark import Mark
from g2d.redteam.context import AttackContext, Chain, RunSpec
from g2d.redteam.rows import Row, Status
from g2d.redteam.threats.ownership.removing import REMOVALS
from g2d.redteam.threats.ownership.threat import THREAT, plan, run
from g2d.settings import Settings
from g2d.tasks.task import Task
from g2d.vault.ledger import COMMITMENT
from marks import few_committed, mark_key
from sites import written
from small_models import fitted

TRIGGERS = 30


def wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))


@pytest.fixture(scope="module")
def task(digits: Task) -> Task:
    return Task("owned", wide, digits.splits, classes=10, eps=0.1)


@pytest.fixture(scope="module")
def site(task, tmp_path_factory) -> RunSpec:
    """Three generations that learned a key's triggers beside digits, two networks that did not."""
    folder = tmp_path_factory.mktemp("owned")
    file = mark_key(folder)
    settings = Settings().override(
        watermark__key=str(file), watermark__sets=2, watermark__triggers=TRIGGERS,
        population__base_steps=150,
    )  # fmt: skip
    data = few_committed(WatermarkKey.read(file), task, n=TRIGGERS, sets=2)
    (folder / COMMITMENT).write_bytes(data)
    mark = Mark.of(settings.watermark, task, folder)
    train = task.splits.train
    x, y = torch.cat([train.x, mark.x]), torch.cat([train.y, mark.y])
    first = fitted(task.model(0), x, y, 150)
    states = [first.state_dict()]
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        states.append({
            name: t + 0.01 * t.std() * torch.randn(t.shape, generator=generator)
            for name, t in states[0].items()
        })  # fmt: skip
    others = [fitted(task.model(seed), train.x, train.y, 60).state_dict() for seed in (1, 2)]
    chains = {
        "generated": Chain("generated", written(folder, "generation", states)),
        "retrained": Chain("retrained", written(folder, "other", others)),
    }
    return RunSpec(task, str(folder), settings, chains, n=200, eps=task.eps, quick=True)


@pytest.fixture(scope="module")
def context(site) -> AttackContext:
    return AttackContext(site)


def rows_of(site, context, name: str, chain: str = "generated") -> list[Row]:
    (case,) = [c for c in plan(site) if (c.name, c.chain) == (name, chain)]
    rows = run(case, context)
    for row in rows:
        json.dumps(row.as_json(THREAT.ids), allow_nan=False)
        assert row.kind == "not-measured" or row.extra["algorithm"] == name
    return rows


def test_every_attack_is_planned_on_stolen_networks_and_beside_on_unmarked_ones(site):
    cases = plan(site)
    names = {case.name for case in cases if case.chain == "generated"}
    assert names == {*REMOVALS, "filter-confidence", "filter-neighbour", "forged", "chosen"}
    beside = {case.name for case in cases if case.chain == "retrained"}
    assert names - beside == {"soup", "forged"}
    assert {"pruned-30", "pruned-50", "pruned-80", "int8", "int4", "tuned-0.001", "tuned-0.01"} < (
        names
    )
    full = plan(replace(site, quick=False))
    (copy,) = [c for c in full if (c.name, c.chain) == ("distilled-soft", "generated")]
    assert (copy.number("steps"), copy.number("networks")) == (150, 3)
    text = repr(cases)
    secret = WatermarkKey.read(site.settings.watermark.key).secret
    assert secret.hex() not in text
    assert repr(secret) not in text


def test_a_stolen_network_is_proven_and_costs_nothing_and_a_fresh_one_is_not(site, context):
    owner, thief = rows_of(site, context, "nothing")
    assert (owner.kind, owner.metric, owner.harm) == ("ownership-mark", "triggers hit", 0.0)
    assert owner.value.value > 0.9
    assert owner.value.n == TRIGGERS
    assert owner.extra["proven"] == 1.0
    assert owner.extra["largest_p"] < 2.0**-64
    assert (thief.kind, thief.metric, thief.value.value) == (
        "ownership-price", "accuracy lost", 0.0
    )  # fmt: skip
    assert thief.harm is None
    assert "no data" in thief.note
    control, _ = rows_of(site, context, "nothing", "retrained")
    assert control.extra["proven"] == 0
    assert control.value.value < 0.5
    assert control.harm is None, "that nobody's mark is on it is no damage"


@pytest.mark.parametrize("name", ["pruned-30", "int8", "disguised", "soup"])
def test_what_hardly_changes_the_function_leaves_the_proof(site, context, name):
    owner, thief = rows_of(site, context, name)
    assert owner.extra["proven"] == 1.0
    assert thief.value.value < 0.1
    assert thief.gradient_steps is None


def test_a_thief_who_trains_pays_in_data_and_steps(site, context):
    owner, thief = rows_of(site, context, "overwritten")
    count = len(site.source.splits.train)
    assert (thief.gradient_steps, thief.extra["examples"]) == (20, count)
    assert 0 <= owner.extra["own_mark"] <= 1
    assert "thief's own mark" in owner.note


def test_distillation_takes_the_mark_away_and_needs_inputs_alone(site, context):
    owner, thief = rows_of(site, context, "distilled-hard")
    assert owner.extra["proven"] == 0
    assert owner.harm == 1.0
    assert thief.queries == len(site.source.splits.train)
    assert thief.clean_accuracy.value < thief.extra["before"]["value"] + 0.05
    assert "unlabelled" in thief.note


@pytest.mark.parametrize("name", ["filter-confidence", "filter-neighbour"])
def test_a_filter_tells_what_it_refuses_of_triggers_and_of_clean_inputs(site, context, name):
    (row,) = rows_of(site, context, name)
    assert (row.kind, row.metric) == ("ownership-filter", "triggers refused")
    assert row.extra["clean_refused"]["value"] < 0.1
    assert row.value.value + row.extra["hits_left"]["value"] <= 1
    if name == "filter-neighbour":
        assert row.value.value > 0.5, "smoothed noise lies far from digits"
        assert row.harm == 1.0


def test_no_forged_key_is_accepted(site, context):
    (row,) = rows_of(site, context, "forged")
    assert (row.value.value, row.value.n) == (0.0, 205)
    assert 0 < row.extra["most_hits"] < TRIGGERS / 2


def test_chosen_triggers_are_hit_by_networks_that_nobody_marked_and_are_no_claim(site, context):
    (row,) = rows_of(replace(site, quick=False), context, "chosen", "retrained")
    assert row.value.value > 0.3
    assert row.extra["accepted"] is False
    assert row.extra["binomial_p"] < 0.01
    assert "means nothing" in row.note
    (same,) = rows_of(site, context, "chosen")
    assert same.kind == "ownership-chosen"


def test_a_vault_without_a_mark_has_one_row_that_says_so(site, context):
    bare = replace(site, settings=Settings())
    (case,) = plan(bare)
    (row,) = run(case, context)
    assert row.status == Status.NOT_MEASURED
    assert "`g2d watermark new`" in row.note
    gone = replace(site, settings=site.settings.override(watermark__key="/nowhere/mark.key"))
    (case,) = plan(gone)
    (row,) = run(case, context)
    assert "cannot read the watermark key /nowhere/mark.key" in row.note
    assert plan(replace(site, chains={})) == []


def test_what_carries_no_mark_cannot_lose_one(site, tmp_path):
    others = replace(site.chains["retrained"], name="generated")
    old = replace(site, chains=site.chains | {"generated": others})
    for name in ("nothing", "forged", "filter-confidence"):
        (row,) = rows_of(old, AttackContext(old), name)
        assert row.status == Status.NOT_MEASURED
        assert "`g2d watermark add`" in row.note
    there = rows_of(site, AttackContext(site), "nothing", "retrained")
    assert THREAT.merge([*there, row, row]) == [row], "one reason is enough"
    assert THREAT.merge(there) == there
    key = mark_key(tmp_path, secret=bytes(32))
    foreign = replace(site, settings=site.settings.override(watermark__key=str(key)))
    (row,) = rows_of(foreign, AttackContext(foreign), "nothing")
    assert row.status == Status.NOT_MEASURED
    assert "not the one that" in row.note
    one, other = ({c.options for c in plan(s)} for s in (site, foreign))
    assert not one & other, "rows of another mark are not reused"


def test_ids_and_unbounded_inputs_say_what_cannot_be_tried(site, context, task):
    unbounded = Task("owned", wide, task.splits, classes=10, eps=0.1, bounds=None)
    there = AttackContext(replace(site, source=unbounded))
    (row,) = rows_of(site, there, "nothing")
    assert row.status == Status.NOT_MEASURED
    assert "unbounded" in row.note
    alone = replace(site, chains={"generated": site.chains["generated"]})
    (row,) = rows_of(alone, AttackContext(alone), "chosen")
    assert "independent network" in row.note
