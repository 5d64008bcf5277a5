"""Warm-start extraction: an exposed one that learns the answers is worth more than itself."""

import dataclasses

import pytest
import torch

from g2d.redteam.context import AttackContext, Chain
from g2d.redteam.rows import Status
from g2d.redteam.threats import threat
from sites import site_of, trained

pytest.importorskip("art")


@pytest.fixture(scope="module")
def spec(digits_task, tmp_path_factory):
    """Two basins in turn; each network is its basin's first one, moved at random."""
    founders = [trained(digits_task, seed, 80) for seed in (0, 1)]
    g, states = torch.Generator().manual_seed(0), []
    for i in range(6):
        moved = {n: 0.25 * t.std() * torch.randn(t.shape, generator=g)
                 for n, t in founders[i % 2].items()}  # fmt: skip
        states.append({n: t + moved[n] for n, t in founders[i % 2].items()})
    return site_of(digits_task, tmp_path_factory.mktemp("warm"), states)


def case_of(spec, chain="generated", every=0, **more):
    cases = [c for c in threat("extraction").plan(spec) if c.name == "warm"]
    (case,) = [c for c in cases if (c.chain, c.number("every")) == (chain, every)]
    options = dict(case.options) | {"queries": 150, "epochs": 4} | more
    return dataclasses.replace(case, options=tuple(options.items()))


def run(spec, **more):
    return threat("extraction").run(case_of(spec, **more), AttackContext(spec))


def test_a_copy_that_begins_at_an_exposed_one_comes_nearer_than_one_from_random_weights(spec):
    agreed, fooled = run(spec)
    assert (agreed.kind, fooled.kind) == ("extraction-warm-agreement", "extraction-warm-transfer")
    assert (agreed.metric, fooled.metric) == ("agreement", "ASR")
    assert agreed.queries == fooled.queries == 150
    assert agreed.value.value > agreed.extra["from_random_weights"]["value"] + 0.1
    assert agreed.value.value >= agreed.extra["as_exposed"]["value"]
    assert fooled.value.value > fooled.extra["from_random_weights"]["value"]
    assert fooled.value.value <= fooled.extra["white_box"]["value"] + 0.1
    assert "3 exposed; the best of them as it is" in fooled.note
    assert "had the exposed one stayed" in fooled.note
    assert fooled.target == "generated, no rotation"
    assert 0 < fooled.extra["next"]["value"] <= 1


def test_the_permutation_is_the_same_function_and_falls_like_the_exposed_one(spec):
    full = dataclasses.replace(spec, quick=False)
    agreed, fooled = run(full, chain="permuted", every=1000, epochs=1)
    assert agreed.extra["as_exposed"]["value"] == 1
    assert fooled.extra["as_exposed"] == fooled.extra["stayed"]
    assert "next" not in fooled.extra


def test_every_query_is_counted_once(spec, monkeypatch):
    """The answers that tell which exposed one fits are of the same budget, under the same clock."""
    from g2d.redteam.threats.extraction import warm

    asked = []

    class Counted(warm.Rotating):
        def predict(self, x):
            answer = super().predict(x)
            asked.append((self, len(x), self.number))
            return answer

    monkeypatch.setattr(warm, "Rotating", Counted)
    full = dataclasses.replace(spec, quick=False)
    run(full, every=100, queries=250, epochs=1)
    first = asked[0][0]  # the control asks another one, which lives as long
    own = [(count, number) for target, count, number in asked if target is first]
    assert sum(count for count, _ in own) == 250
    assert own[0] == (100, 0)
    assert {number for _, number in own} == {0, 1, 2}


def test_nothing_exposed_and_nothing_to_rotate_are_told(spec):
    alone = Chain("generated", spec.chains["generated"].networks[:1])
    lonely = dataclasses.replace(spec, chains={"generated": alone})
    (row,) = run(lonely)
    assert row.status is Status.NOT_MEASURED
    assert "nothing was exposed" in row.note
    two = Chain("generated", spec.chains["generated"].networks[:2])
    short = dataclasses.replace(spec, chains={"generated": two}, quick=False)
    (row,) = run(short, every=1000)
    assert row.status is Status.NOT_MEASURED
    assert "cannot rotate" in row.note
    assert {row.status for row in run(short, epochs=1)} == {Status.OK}
