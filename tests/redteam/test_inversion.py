"""Span inversion: a few answers tell the generator's owner which network of its span is live."""

import dataclasses
import types

import pytest
import torch

from g2d.generator import Generator
from g2d.generator.latent_space import LatentSpace
from g2d.redteam.context import AttackContext, Chain
from g2d.redteam.rows import Status
from g2d.redteam.threats import threat
from g2d.redteam.threats.adaptive.owner import Owner
from g2d.weights.codec import Codec
from sites import site_of, trained

WIDTH = 6


class Plane(LatentSpace):
    """Networks around one, in as many directions as there are latents."""

    def __init__(self, codec, mean, basis):
        self.codec, self.mean, self.basis = codec, mean, basis

    def draw(self, count, generator, exposed=None):
        return torch.randn(count, len(self.basis), generator=generator)

    def encode(self, v):
        return (v - self.mean) @ torch.linalg.pinv(self.basis)

    def decode(self, z):
        return self.mean + z @ self.basis


@pytest.fixture(scope="module")
def generator(digits_task):
    founder, other = (trained(digits_task, seed, 80) for seed in (0, 1))
    codec = Codec.fit([founder, other])
    mean, g = codec.encode(founder), torch.Generator().manual_seed(3)
    basis = 0.25 * mean.std() * torch.randn(WIDTH, codec.size, generator=g)
    return Generator(Plane(codec, mean, basis))


@pytest.fixture(scope="module")
def spec(digits_task, generator, tmp_path_factory):
    """Five networks of the generator's plane, and one that is not of it."""
    drawn = generator.sample(5, torch.Generator().manual_seed(5))
    states = [generator.to_state(v) for v in drawn]
    spec = site_of(digits_task, tmp_path_factory.mktemp("plane"), states)
    chains = dict(spec.chains) | {"draws": Chain("draws", ())}
    return dataclasses.replace(spec, chains=chains)


@pytest.fixture
def context(spec, generator):
    context = AttackContext(spec)
    context._defence = types.SimpleNamespace(generator=generator)
    return context


def inverted(spec, context, **more):
    (case,) = [c for c in threat("adaptive").plan(spec) if c.name == "inversion"]
    options = dict(case.options) | {"steps": 10, "fit": 40} | more
    return threat("adaptive").run(
        dataclasses.replace(case, options=tuple(options.items())), context
    )


def test_the_live_network_is_found_and_attacked_as_if_it_were_read(spec, context):
    few, all_of_them, none = inverted(spec, context, answers="9000 40 5000")
    guide = len(spec.source.splits.guide)
    assert (few.kind, few.chain) == ("adaptive-inversion", "generated")
    assert (few.scored, few.gradient_steps) == (3, 50)
    assert (few.queries, all_of_them.queries) == (40, guide)
    for row in (few, all_of_them):
        assert row.extra["agreement"]["value"] > 0.95
        assert row.extra["distance"] < 0.5 * row.extra["distance_of_nearest_exposed"]
        assert abs(row.value.value - row.extra["white_box"]["value"]) < 0.05
        assert row.value.value > row.extra["last_exposed"]["value"]
        assert row.extra["stayed"]["value"] > row.extra["last_exposed"]["value"]
        assert "2 exposed, 60 images; the live weights themselves give " in row.note
    assert none.status is Status.NOT_MEASURED
    assert f"has {guide} inputs to ask about" in none.note
    assert none.extra["answers"] == 9000


def test_one_network_and_no_generator_have_nothing_to_invert(spec, context):
    alone = Chain("generated", spec.chains["generated"].networks[:1])
    lonely = dataclasses.replace(spec, chains=dict(spec.chains) | {"generated": alone})
    context.spec = lonely
    (row,) = inverted(lonely, context)
    assert row.status is Status.NOT_MEASURED
    assert "generate more" in row.note
    without = {name: chain for name, chain in spec.chains.items() if name != "draws"}
    planned = threat("adaptive").plan(dataclasses.replace(spec, chains=without))
    assert [case for case in planned if case.name == "inversion"] == []


def test_full_plans_ask_as_often_as_the_issue_says_and_have_controls(spec):
    chains = dict(spec.chains) | {"soup": spec.chains["generated"]}
    planned = threat("adaptive").plan(dataclasses.replace(spec, quick=False, chains=chains))
    cases = {case.chain: case for case in planned if case.name == "inversion"}
    assert set(cases) == {"generated", "soup"}
    assert {case.option("answers") for case in cases.values()} == {"100 1000 5000"}
    assert all(case.generator for case in cases.values())


def test_an_owner_searches_the_span_where_the_decoder_does_not_reach(digits_task, generator):
    """An exposed network that no latent gives adds a direction of its own."""
    outside = generator.to_state(
        generator.space.mean + 0.3 * torch.randn(
            generator.codec.size, generator=torch.Generator().manual_seed(9)
        ) * generator.space.mean.std()
    )  # fmt: skip
    owner = Owner(digits_task, generator, [outside], torch.Generator().manual_seed(0))
    assert len(owner.known) == 33
    wanted = generator.codec.encode(outside) * 0.5 + owner.known[0] * 0.5
    x = digits_task.splits.guide.x[:200]
    from g2d.attacks.reconstruction import Answers

    with torch.no_grad():
        answers = Answers(x, owner.run(wanted, x))
    found = owner.find(answers, 60, torch.Generator().manual_seed(1))
    assert found.way == "span"
    assert found.misfit < 0.2 * owner._apart(owner.known[owner.nearest(answers)], answers)


def leave(models, x, y, generator):
    return x.clone()


def test_the_owner_attacks_as_the_task_is_attacked(digits_task, spec, generator):
    """An attack that changes nothing wins nothing; PGD in a ball would have."""
    task = dataclasses.replace(digits_task, attack=leave)
    spec = dataclasses.replace(spec, source=task, attack=task.attack_kind)
    context = AttackContext(spec)
    context._defence = types.SimpleNamespace(generator=generator)
    (row,) = inverted(spec, context, answers="40", fit=1, n=20)
    assert row.attack == "the task's own attack on the fit of 1 steps, 40 answers"
    assert (row.value.value, row.extra["stayed"]["value"], row.eps) == (0.0, 0.0, None)
