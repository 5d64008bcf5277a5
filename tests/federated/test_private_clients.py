"""Clients that train privately: paid for before, each in its own ledger, and said in words."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

pytest.importorskip("opacus", reason="g2d[privacy] is not installed")
pytest.importorskip("dp_accounting", reason="g2d[privacy] is not installed")

import g2d
from commands import succeed
from federated_processes import settings
from g2d.cli.federated_processes import _say_what_is_guaranteed
from g2d.core.types import silent
from g2d.defence.federating import begin_at, check_settings, federate, simulation
from g2d.errors import PopulationError, PrivacyError, SettingsError
from g2d.protect.privacy.accounting import epsilon
from g2d.tasks.splits import Split
from g2d.training.federated.bases import train_base
from g2d.training.federated.client import Client
from g2d.training.federated.ledgers import ClientLedger, ledger_at, told
from g2d.training.federated.messages import ANSWER, MEMBER, ROUND, Message, decode, encode
from g2d.training.federated.networks import Networks
from g2d.training.federated.private import cost_of_round, rounds_left
from g2d.training.federated.processes.desk import Desk
from g2d.training.federated.processes.remote import Remote
from g2d.training.federated.processes.words import settings_digest
from g2d.training.federated.processes.work import Worker
from g2d.training.federated.stages import Asked, rate_of
from g2d.vault.spendings import SPENDINGS
from g2d.vault.verify import verify

PRIVATE = settings(private=True).override(
    privacy__records=200, privacy__batch=40, privacy__noise=2.0, privacy__fork_noise=2.0,
    privacy__epsilon=3.0, privacy__delta=1e-4,
)  # fmt: skip
"""A base of four rounds, an early checkpoint of one, two members of one; two steps each."""


def few(digits, count=40, begin=0):
    train = digits.splits.train
    return Split(train.x[begin : begin + count], train.y[begin : begin + count])


def made(digits, folder=None, given=PRIVATE, records=None, name="a"):
    """A client, as it is after each start of its process."""
    ledger = ClientLedger(given, folder and folder / "ledger")
    file = folder and folder / f"{name}.safetensors"
    own = few(digits) if records is None else records
    return Client(name, digits, own, given, Networks.of(digits), begin_at(digits, given), file,
                  ledger=ledger)  # fmt: skip


def ask(client, stage="base-0", number=0, repelled=()):
    s = client.settings
    rounds = {"base": 4, "early": 1, "member": 1}[stage.partition("-")[0]]
    asked = Asked(stage, rounds, s.population.batch, repelled, rate_of(stage, s.federated))
    vector = client.networks.vector(client.like)
    plan = asked.plan(s.federated, number)
    return encode(Message(ROUND, stage, vector, number, plan=plan), client.networks.form)


def whats(client):
    return [one.what for one in client.ledger.spendings()]


def budget(rounds, given=PRIVATE):
    """Settings whose budget covers just so many rounds."""
    planned = rounds_left(given)
    some, more = (epsilon(planned[:n], given.privacy.delta) for n in (rounds, rounds + 1))
    return given.override(privacy__epsilon=(some + more) / 2)


def test_a_round_is_paid_for_before_it_is_trained_and_once(digits, tmp_path, monkeypatch):
    client = made(digits, tmp_path)

    def killed(self, asked):
        assert whats(self) == ["round 0 of base-0"]  # it is on the medium by now
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Client, "_trained", killed)
        with pytest.raises(KeyboardInterrupt):
            client.answer(ask(client))
    again = made(digits, tmp_path)
    first = again.answer(ask(again))
    assert whats(again) == ["round 0 of base-0"] * 2  # fresh noise is charged anew
    for client in (again, made(digits, tmp_path)):  # the same answer once more costs nothing
        assert client.answer(ask(client)) == first
        assert len(whats(client)) == 2
    again.answer(ask(again, number=1))
    found = again.ledger.spendings()
    assert [one.what for one in found] == ["round 0 of base-0"] * 2 + ["round 1 of base-0"]
    assert {(one.noise, one.rate, one.count) for one in found} == {(2.0, 0.2, 2)}
    assert again.ledger.epsilon() == epsilon(found, 1e-4)


def test_noise_is_nobodys_seed_and_no_record_is_told_by_silence(digits):
    answers = [made(digits).answer(ask(made(digits))) for _ in range(2)]
    assert answers[0] != answers[1]
    none = made(digits, records=few(digits, 0))
    data = none.answer(ask(none))  # whether there is one record or none is private, too
    found = decode(data, none.networks.form, ANSWER).vector
    assert np.isfinite(found).all()
    assert found.any()
    assert len(whats(none)) == 1


def test_copies_of_a_record_count_once(digits):
    one = few(digits, 5)
    twice = Split(torch.cat([one.x, one.x]), torch.cat([one.y, (one.y + 1) % 10]))
    client = made(digits, records=twice)
    assert len(client.records) == 5
    with pytest.raises(PrivacyError, match="unit names the key column 'person'"):
        made(digits, given=PRIVATE.override(privacy__unit="person"))


def test_members_are_fled_record_by_record(digits, monkeypatch):
    """No pool of attacks is crafted: it would bring records together."""
    seen = []
    client = made(digits)
    vector = client.networks.vector(client.like)
    client.receive(encode(Message(MEMBER, "early-0", vector), client.networks.form))
    assert not client._pools
    real = client._private

    def noted(stage, repelled):
        seen.append(real(stage, repelled).plan)
        return real(stage, repelled)

    monkeypatch.setattr(client, "_private", noted)
    assert client.answer(ask(client, "member-0", repelled=("early-0",))) is not None
    (plan,) = seen
    assert len(plan.released) == 1
    assert plan.light_eps > 0
    client.forget()
    assert not client._released


def test_a_client_whose_budget_is_used_up_stops_and_the_round_goes_on(digits, tmp_path):
    """It says so in one line, and nobody waits for it any more."""
    given, said = budget(1), []
    given = given.override(federated__clients=2, federated__rounds=3)
    form = Networks.of(digits).form
    desk = Desk(["a", "b"], settings_digest(given, form), 3600.0, said.append)
    remote = Remote(digits, given, begin_at(digits, given), names=["a", "b"], desk=desk)

    class Line:
        def __init__(self, name):
            self.name = name

        def ask(self, topic, data):
            return desk.handle(self.name, topic, data)

    plain = given.override(federated__private=False)  # each decides for itself
    own = few(digits, 40, 40)
    other = Client("b", digits, own, plain, remote.networks, remote.like)
    clients = [made(digits, tmp_path, given), other]
    ended: dict[str, BaseException] = {}

    def work(client):
        worker = Worker(client, desk.settings, Line(client.identity), threading.Event(), print)
        try:
            worker.run()
        except PrivacyError as error:
            ended[client.identity] = error

    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    server = remote.train("base-0", remote.networks.vector(remote.like), 3)
    desk.end(240.0)
    for thread in threads:
        thread.join(240.0)
        assert not thread.is_alive()
    assert [closed.answered for closed in server.closed] == [2, 1, 1]
    assert list(ended) == ["a"]
    line = str(ended["a"])
    assert "the privacy budget of these records is used up" in line
    assert "round 1 of base-0 would make it" in line
    assert "\n" not in line
    assert "a does not answer round 1: its privacy ledger covers no further round" in said[0]
    assert whats(clients[0]) == ["round 0 of base-0"]
    assert desk._expected == {"b"}


def test_what_is_guaranteed_is_said_in_plain_words(digits, tmp_path, capsys):
    client = made(digits, tmp_path)
    client.answer(ask(client))
    first, second, third = told(client.ledger, rounds_left(PRIVATE, client.answered))
    assert "epsilon 3 at delta 0.0001" in first
    assert "at most 20.1-fold" in first
    whole = epsilon(rounds_left(PRIVATE), 1e-4)
    assert f"epsilon {client.ledger.epsilon():.3f}; with all 6 rounds to come {whole:.3f}" in second
    assert "that this client takes part" in third
    assert "drowns what twenty of them learn" in third
    _say_what_is_guaranteed(client)
    assert first in " ".join(capsys.readouterr().err.split())
    plain = Client("a", digits, few(digits, 8), settings(), client.networks, client.like)
    _say_what_is_guaranteed(plain)
    said = " ".join(capsys.readouterr().err.split())
    assert "no privacy guarantee" in said
    assert "each answer tells of 8 records" in said
    small = budget(3)
    (_, line, _) = told(ClientLedger(small), rounds_left(small))
    assert "more than the budget: this client stops before round 3 of base-0" in line
    unlike = small.override(privacy__fork_noise=5.0)
    assert (
        "chooses between noise and fork_noise"
        in list(told(ClientLedger(unlike), rounds_left(unlike)))[2]
    )


def test_the_ledger_is_a_vault_that_g2d_privacy_states(digits, tmp_path):
    client = made(digits, tmp_path)
    for number in range(2):
        client.answer(ask(client, number=number))
    told_ = " ".join(succeed("privacy", str(tmp_path / "ledger")).output.split())
    assert f"epsilon {client.ledger.epsilon():.3f} at delta 0.0001" in told_
    assert "answers 0 to 1" in told_
    assert verify(tmp_path / "ledger", patience=0.0) == []
    lines = tmp_path / "ledger" / SPENDINGS
    lines.write_bytes(lines.read_bytes().replace(b"round 0", b"round 9"))
    with pytest.raises(PrivacyError, match="is not what was recorded"):
        made(digits, tmp_path)
    with pytest.raises(PrivacyError, match="is not what was recorded"):
        client.answer(ask(client, number=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"privacy__epsilon": 8.0}, r"epsilon = 3\.0, and now it is 8\.0"),
        ({"privacy__delta": 1e-3}, "delta = 0.0001, and now"),
        ({"privacy__unit": "person"}, "unit = 'record', and now"),
        ({"federated__private": False}, "trained on privately, and now"),
    ],
)
def test_what_was_promised_stays(tmp_path, change, said):
    ledger_at(tmp_path / "ledger", PRIVATE)
    with pytest.raises(PrivacyError, match=said):
        ledger_at(tmp_path / "ledger", PRIVATE.override(**change))
    other = PRIVATE.override(privacy__noise=4.0, federated__rounds=9)  # another run, same people
    assert ledger_at(tmp_path / "ledger", other).spendings() == ()
    assert ledger_at(tmp_path / "none", settings()) is None


def test_an_answer_that_was_made_without_privacy_is_not_gone_on_from(digits, tmp_path):
    plain = Client("a", digits, few(digits), settings(), Networks.of(digits),
                   begin_at(digits, PRIVATE), tmp_path / "a.safetensors")  # fmt: skip
    plain.answer(ask(plain))
    with pytest.raises(PrivacyError, match=r"to round 0 of base-0, was made without privacy"):
        made(digits, tmp_path)


def test_rounds_that_are_left_follow_the_last_answer():
    whole = [one.what for one in rounds_left(PRIVATE)]
    assert whole == [
        *(f"round {k} of base-0" for k in range(4)), "round 0 of early-0", "round 0 of member-0",
        "round 0 of member-1",
    ]  # fmt: skip
    last = Message(ANSWER, "early-0", np.zeros(1, np.float32))
    assert [one.what for one in rounds_left(PRIVATE, last)] == whole[5:]
    forked = PRIVATE.override(privacy__fork_noise=5.0)
    assert cost_of_round("member-1", 0, forked).noise == 5.0
    assert cost_of_round("early-0", 0, forked).noise == 2.0


def test_a_simulation_keeps_a_ledger_for_each_client_and_notes_the_worst(digits, tmp_path):
    given, said = budget(6), []  # one member is not paid for
    with g2d.Defence.create("digits", tmp_path / "vault", given) as defence:
        why = "member-1: not one of 1 rounds .* 3 of 3 clients have used up their privacy budget"
        with pytest.raises(PopulationError, match=why):
            federate(defence.task, defence.vault, defence.settings, None, silent, said.append)
        stops = [line for line in said if " stops: the privacy budget" in line]
        assert [line.split()[0] for line in stops] == [f"client-{k:02d}" for k in range(3)]
        folder = tmp_path / "vault.federated" / "ledgers"
        assert sorted(path.name for path in folder.iterdir()) == [f"client-0{k}" for k in range(3)]
        for path in folder.iterdir():
            assert len(ClientLedger(given, path).spendings()) == 6
        notes = defence.vault.entry("member", 0).info["federated"]
        assert notes["private"] is True
        assert 0 < notes["epsilon"] <= given.privacy.epsilon
        assert notes["delta"] == 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"privacy__records": 0}, "records is missing"),
        ({"privacy__noise": 0.0}, "noise = 0 hides nothing"),
        ({"privacy__batch": 200}, "has to be below 1"),
        ({"harden__recipe": ("adversarial",), "harden__method": "trades"}, "record by record"),
    ],
)
def test_what_has_no_guarantee_is_refused_where_clients_train(digits, change, said):
    check_settings(digits, PRIVATE)
    with pytest.raises(SettingsError, match=said):
        check_settings(digits, PRIVATE.override(**change))
    check_settings(digits, PRIVATE.override(**change), own=False)  # it is their matter


def test_the_servers_own_records_are_in_no_ledger(digits):
    given = PRIVATE.override(federated__root=20, federated__rounds=1, federated__rule="fltrust")
    sim = simulation(digits, given, None, [].append)
    found = train_base(sim, silent)
    assert found.server.closed[0].answered == 3
    assert sim._own.ledger is None
    assert {len(client.ledger.spendings()) for client in sim.clients.values()} == {1}
    assert sim.spent == epsilon([cost_of_round("base-0", 0, given)], 1e-4)


def test_how_private_a_client_is_it_decides_for_itself(digits):
    form = Networks.of(digits).form
    digests = {settings_digest(s, form) for s in (settings(), settings(private=True), PRIVATE)}
    assert len(digests) == 1
