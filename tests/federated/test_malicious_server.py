"""What a server may ask of a client: what the client's own settings say, and each round once."""

from __future__ import annotations

import numpy as np
import pytest

from federated_processes import settings
from g2d.defence.federating import begin_at
from g2d.errors import FederatedError
from g2d.tasks.splits import Split
from g2d.training.federated.client import Client
from g2d.training.federated.messages import ANSWER, MEMBER, ROUND, Message, decode, encode
from g2d.training.federated.networks import Networks
from g2d.training.federated.stages import Asked, clean_rounds, rate_of

SETTINGS = settings()  # a base of four rounds, an early checkpoint of one, two members of one


@pytest.fixture
def client(digits, tmp_path):
    return made(digits, tmp_path)


def made(digits, folder):
    some, like = digits.splits.train, begin_at(digits, SETTINGS)
    records = Split(some.x[:8], some.y[:8])
    networks = Networks.of(digits)
    return Client("a", digits, records, SETTINGS, networks, like, folder / "a.safetensors")


def ask(client, stage="base-0", number=0, shift=0.0, rounds=4, **plan):
    """A round as an honest server sends it, but for what is changed."""
    asked = Asked(stage, rounds, SETTINGS.population.batch, (), rate_of(stage, SETTINGS.federated))
    vector = client.networks.vector(client.like) + np.float32(shift)
    told = asked.plan(SETTINGS.federated, number) | plan
    return encode(Message(ROUND, stage, vector, number, plan=told), client.networks.form)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"batch": 1}, r"has batch 1, .* it is 32"),
        ({"steps": 1}, r"has steps 1, .* it is 2"),
        ({"steps": 10**6}, "has steps 1000000"),
        ({"momentum": 0.0}, r"has momentum 0\.0"),
        ({"rate": 1e-7}, r"has rate 1e-07, .* it is 0\.5"),
        ({"rate": 99.0}, r"has rate 99\.0"),
    ],
)
def test_a_plan_other_than_the_settings_is_followed_by_no_client(client, plan, words):
    """One step of one record is that record's gradient: inversion finds it again at SSIM 1."""
    with pytest.raises(FederatedError, match=words):
        client.answer(ask(client, **plan))
    assert client.kept is None
    assert client.answer(ask(client)) is not None


@pytest.mark.parametrize(
    ("stage", "number", "words"),
    [
        ("base-0", 4, r"round 4 of base-0, .* have 4 rounds"),
        ("base-1", 0, r"asks for 'base-1', and .* have a base, 1 early checkpoints and 2 members"),
        ("early-1", 0, "asks for 'early-1'"),
        ("member-2", 0, "asks for 'member-2'"),
        ("other-0", 0, "asks for 'other-0'"),
    ],
)
def test_stages_and_rounds_end_where_the_settings_end(client, stage, number, words):
    with pytest.raises(FederatedError, match=words):
        client.answer(ask(client, stage, number, rounds=9))
    assert client.answer(ask(client)) is not None


def test_a_round_is_answered_once_and_nobody_goes_back_also_after_a_kill(client, digits, tmp_path):
    first = client.answer(ask(client, number=1))
    for again in (client, made(digits, tmp_path)):  # killed, and started again
        assert again.answer(ask(again, number=1)) == first
        with pytest.raises(FederatedError, match="round 1 of base-0 of another network"):
            again.answer(ask(again, number=1, shift=0.1))
        with pytest.raises(FederatedError, match=r"after round 1 of base-0.* KIT/state"):
            again.answer(ask(again, number=0))
    assert again.answer(ask(again, number=2, shift=0.1)) is not None
    assert again.answer(ask(again, "early-0", rounds=1)) is not None
    later = again.answer(ask(again, "member-1", rounds=1))
    assert decode(later, again.networks.form, ANSWER).stage == "member-1"
    for stage in ("member-0", "early-0", "base-0"):
        with pytest.raises(FederatedError, match="after round 0 of member-1"):
            again.answer(ask(again, stage, rounds=4 if stage == "base-0" else 1))


def test_no_pools_are_crafted_on_networks_that_the_settings_do_not_have(client):
    vector, form = client.networks.vector(client.like), client.networks.form
    for stage in ("member-2", "early-1", "base-3", "other-0"):
        with pytest.raises(FederatedError, match=f"the server sends '{stage}'"):
            client.receive(encode(Message(MEMBER, stage, vector), form))
    client.receive(encode(Message(MEMBER, "early-0", vector), form))


def test_early_checkpoints_learn_attacks_once_they_have_learned_something():
    s = SETTINGS.override(population__recipe="repelled")
    assert [clean_rounds(stage, 5, s) for stage in ("base-0", "early-1", "member-3")] == [0, 2, 0]
    assert clean_rounds("early-1", 5, s.override(population__recipe="forks")) == 0
    f = s.federated
    asked = Asked("early-1", 4, 32, ("base-0",), f.local_rate, 2)
    plans = [asked.plan(f, number) for number in range(4)]
    assert [plan["repelled"] for plan in plans] == [[], [], ["base-0"], ["base-0"]]
    rates = [f.local_rate, f.local_rate / 2, f.fork_rate, f.fork_rate / 2]
    assert [plan["rate"] for plan in plans] == pytest.approx(rates)
