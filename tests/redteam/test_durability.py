"""Query attacks that go on after the first flip, and what finds are worth as networks rotate."""

import dataclasses

import pytest
import torch

from g2d.attacks.query import SpentError, clock_square
from g2d.redteam.context import AttackContext
from g2d.redteam.query_log import QueryLog, by_count
from g2d.redteam.scoring import share, wilson
from g2d.redteam.threats.query import threat as query
from g2d.redteam.threats.query.durability import durability
from g2d.tasks.splits import Split

EPS = 0.1


def steps(*levels):
    """Networks of one pixel that err where it lies above their level; label 0 is right."""
    return [lambda x, a=a: torch.stack([a - x.mean((1, 2, 3)), torch.zeros(len(x))], 1)
            for a in levels]  # fmt: skip


def lanes_of(models, count=1, every=None, **more):
    split = Split(torch.full((count, 1, 3, 3), 0.5), torch.zeros(count, dtype=torch.long))
    known = {"eps": EPS, "budget": 40, "bounds": (0.0, 1.0)} | more
    return QueryLog(by_count(models, every), split, **known)


def at(value):
    return torch.full((1, 1, 3, 3), value)


def test_a_lane_that_goes_on_keeps_its_deepest_find_and_its_first_count():
    lanes, one = lanes_of(steps(0.54), beyond=True), torch.tensor([0])
    for value in (0.5, 0.55, 0.59, 0.57, 0.9):
        lanes(at(value), one)
    assert int(lanes.first) == 2
    assert int(lanes.spent) == 5
    assert torch.equal(lanes.found, at(0.59)), "0.9 leaves the ball, 0.57 is less deep"
    usual = lanes_of(steps(0.54))
    for value in (0.5, 0.55):
        usual(at(value), one)
    with pytest.raises(SpentError):
        usual(at(0.59), one)
    assert torch.equal(usual.found, at(0.55))


def test_a_find_on_a_later_network_counts_more_than_a_deeper_one_before():
    lanes, one = lanes_of(steps(0.51, 0.57, 0.7), every=1, beyond=True), torch.tensor([0])
    for value in (0.6, 0.58, 0.6):
        lanes(at(value), one)
    assert (int(lanes.first), int(lanes.network)) == (1, 1)
    assert torch.equal(lanes.found, at(0.58))


def test_several_inputs_of_a_lane_in_one_batch_leave_the_deepest():
    lanes, values = lanes_of(steps(0.54), beyond=True), torch.tensor([0.56, 0.59, 0.58])
    lanes(values.view(3, 1, 1, 1).expand(3, 1, 3, 3), torch.tensor([0, 0, 0]))
    assert torch.equal(lanes.found, at(0.59))
    assert int(lanes.first) == 1


@pytest.mark.parametrize("beyond", [False, True])
def test_square_goes_on_to_the_end_of_its_budget_where_it_is_told_to(beyond):
    lanes = lanes_of(steps(0.52), beyond=beyond)
    x, y, g = lanes.split.x, lanes.split.y, torch.Generator().manual_seed(0)
    known = {"eps": EPS, "budget": 40, "generator": g}
    best = clock_square(lanes, x, y, **known, beyond=beyond)
    assert int(lanes.first) > 0
    assert (int(lanes.spent) == 40) == beyond
    if beyond:
        assert torch.equal(lanes.found, best), "the search and the log agree on what is deepest"
        assert float(best.mean()) > 0.58


def test_finds_are_counted_over_five_rotations_with_intervals(context):
    """Ten lanes found on network 0; the next five err above rising levels."""
    models = steps(0.52, 0.53, 0.55, 0.55, 0.57, 0.59)
    lanes = lanes_of(models, count=10)
    values = torch.linspace(0.525, 0.57, 10)
    lanes(values.view(10, 1, 1, 1).expand(10, 1, 3, 3), torch.arange(10))
    told = durability(models, lanes, torch.zeros(10, dtype=torch.long), 40, context)
    wanted = [int((values > level).sum()) for level in (0.53, 0.55, 0.55, 0.57, 0.59)]
    assert [round(10 * point["value"]) for point in told["durability"]] == wanted
    assert [point["rotations"] for point in told["durability"]] == [1, 2, 3, 4, 5]
    assert all(point["n"] == 10 for point in told["durability"])
    first = told["durability"][0]
    assert (first["low"], first["high"]) == wilson(wanted[0], 10)
    assert told["after_five_rotations"]["value"] == 0


def test_a_network_that_a_lane_has_met_before_follows_nothing(context):
    models = steps(0.52, 0.6, 0.6)
    lanes = lanes_of(models, count=2)
    lanes(at(0.55).expand(2, 1, 3, 3), torch.arange(2))
    told = durability(models, lanes, torch.zeros(2, dtype=torch.long), 40, context)
    assert [point["rotations"] for point in told["durability"]] == [1, 2]
    assert "after_five_rotations" not in told
    alone = durability(models[:1], lanes, torch.zeros(2, dtype=torch.long), 40, context)
    assert alone == {}
    same = durability(models[:1], lanes, torch.zeros(2, dtype=torch.long), 40, context, True)
    assert same["after_five_rotations"]["value"] == 1


def test_without_a_find_nothing_is_durable(context):
    lanes = lanes_of(steps(0.9, 0.9))
    assert durability(steps(0.9, 0.9), lanes, torch.zeros(1, dtype=torch.long), 40, context) == {}


def test_every_query_attack_says_what_outlives_five_rotations(spec):
    context = AttackContext(spec)
    planned = {case.name: case for case in query.plan(spec) if case.chain == "generated"}
    assert {"square", "square-clock", "square-stale", "square-margin", "hop-skip-jump"} == set(
        planned
    )
    kept = {}
    for name in ("square-clock", "square-margin"):
        options = dict(planned[name].options) | {
            "images": 20,
            "budget": 60,
            "at": 60,
            "periods": "0",
        }
        case = dataclasses.replace(planned[name], options=tuple(options.items()))
        (row,) = query.run(case, context)
        kept[name] = row
        finds = round(row.value.value * row.value.n)
        assert all(point["n"] <= finds for point in row.extra["durability"])
        assert row.extra["curve"][-1]["value"] == row.value.value
    first, deep = kept["square-clock"], kept["square-margin"]
    # The same search until the first flip, with other squares drawn.
    assert abs(deep.value.value - first.value.value) <= 0.25
    assert deep.extra["spent"] == 60 > first.extra["spent"]
    assert deep.extra["durability"][0]["value"] > first.extra["durability"][0]["value"]
    assert "deepest" in deep.note
    assert share(0, 0).n == 0


def test_full_plans_deepen_on_the_generations_and_on_every_free_rival(spec):
    chains = dict(spec.chains) | dict.fromkeys(("soup", "noise"), spec.chains["generated"])
    full = dataclasses.replace(spec, quick=False, chains=chains)
    deep = {c.chain: c.option("periods") for c in query.plan(full) if c.name == "square-margin"}
    assert deep == {"generated": "0 1000", "soup": "0 1000", "noise": "0 1000", "frozen": "0"}
