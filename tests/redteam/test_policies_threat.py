"""The threat of serving policies: its plans, its rows, votes, and the benchmark's real monitor."""

import dataclasses
import json

import numpy as np
import pytest

from g2d.redteam.context import AttackContext
from g2d.redteam.rows import Status
from g2d.redteam.threats import threat
from g2d.redteam.threats.policies.threat import cases_of, merge, searches_of

TINY = {"images": 12, "budget": 60, "every": 20, "live": 2, "steps": 5}


def test_plans_cover_every_policy_and_attacker(spec):
    found = cases_of(spec, TINY)
    assert len(set(found)) == len(found)
    pairs = {(c.option("policy"), c.name) for c in found}
    for policy in ("global", "sticky", "vote", "random", "keyed"):
        for name in ("clock", "margin", "accounts-5", "accounts-20", "inferred"):
            assert (policy, name) in pairs
    assert {c.option("answers") for c in found} == {"scores", "rounded", "label", "aaa"}
    assert all(c.option("answers") == "label" for c in found if c.name == "labels")
    quick = threat("policies").plan(spec)
    full = threat("policies").plan(dataclasses.replace(spec, quick=False))
    assert 0 < len(quick) < 6 < len(full)
    assert not any("together" in str(c.option("scheme")) for c in full), "no service does that"
    asked = {c.option("scheme") for c in full if c.name.startswith("accounts")}
    assert asked == {"never", "sticky", "sticky-pinned"}, "elsewhere all accounts hear the same"
    assert {c.option("scheme") for c in full if c.name == "clock"} > asked | {"vote-3", "keyed"}
    assert threat("policies").plan(dataclasses.replace(spec, chains={})) == []


@pytest.mark.parametrize("scheme", ["sticky-pinned", "keyed"])
def test_rows_of_a_search_are_complete_and_stand_beside_never_rotating(spec, scheme):
    context = AttackContext(spec)
    wanted = [c for c in cases_of(spec, TINY) if c.name == "clock"
              and c.option("answers") == "scores"]  # fmt: skip
    rows = []
    for name in ("never", scheme):
        (case,) = [c for c in wanted if c.option("scheme") == name]
        rows += threat("policies").run(case, context)
    won = [row for row in merge(rows) if row.metric == "ASR"]
    assert [row.status for row in won] == [Status.OK] * 2
    assert won[0].value.n == won[1].value.n, "the same images"
    assert won[1].extra["never"]["value"] == won[0].value.value
    more = won[1].extra["more_than_never"]
    assert more["value"] == pytest.approx(won[1].value.value - won[0].value.value)
    assert "on the same images" in won[1].note
    curve = [point["value"] for point in won[1].extra["curve"]]
    assert curve == sorted(curve)
    kinds = {row.kind for row in rows}
    assert kinds == {"policy-clock", "policy-clock-again", "policy-clock-replayed"}
    json.dumps([row.as_json(threat("policies").ids) for row in rows])
    assert threat("policies").run(case, context)[0].value == rows[3].value


def test_too_few_networks_and_no_image_are_said(spec):
    generated = dataclasses.replace(
        spec.chains["generated"], networks=spec.chains["generated"].networks[1:3]
    )
    few = dataclasses.replace(spec, chains={"generated": generated})
    context = AttackContext(few)
    cases = cases_of(few, TINY | {"live": 5})
    searched = next(c for c in cases if c.option("scheme") == "sticky")
    (row,) = threat("policies").run(searched, context)
    assert row.status is Status.NOT_MEASURED
    assert "it needs 6 networks and there are 1" in row.note
    voted = next(c for c in cases if c.name == "vote")
    (row,) = threat("policies").run(voted, context)
    assert row.status is Status.NOT_MEASURED
    assert "3 vote and nothing was live before them" in row.note


def test_a_vote_stands_beside_one_network_under_every_attack(spec):
    pytest.importorskip("pyautoattack")
    context = AttackContext(spec)
    case = next(c for c in cases_of(spec, TINY) if c.name == "vote")
    rows = {row.kind: row for row in threat("policies").run(case, context)}
    assert set(rows) == {
        f"policy-vote-{name}" for name in ("white-box", "joint", "eot", "query", "union")
    }
    union = rows["policy-vote-union"]
    for row in rows.values():
        assert row.status is Status.OK
        assert row.extra["forward_passes"] == 3
        assert row.value.value <= union.value.value
        assert row.extra["one_network"]["value"] <= union.extra["one_network"]["value"]
        assert (
            row.extra["more_than_one_network"]["low"] <= row.extra["more_than_one_network"]["high"]
        )
    assert union.value.value > 0


def test_the_products_monitor_guards_the_benchmarks_service(spec):
    from benchmarks.monitoring.guards import guards_of
    from g2d.redteam.threats.policies.searches import Searches

    context = AttackContext(spec)
    model = context.model(context.chain("generated").networks[-1])
    case = searches_of(spec, "sticky-watched", TINY | {"images": 6})[0]
    guards = guards_of(context, model, 7)
    assert guards[6].look(context.examples(1).x.numpy(), np.zeros((1, 10)), "x", 1.0) == {}
    won, *_ = Searches(case, context, lambda count: guards[:count]).rows()
    assert won.status is Status.OK
    assert len(won.extra["seen"]) == won.value.n
    assert "monitor of queries" in won.note
