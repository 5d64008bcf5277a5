"""Clients of one process train a base, and a whole population that the product goes on with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import g2d
from commands import fail, succeed
from g2d.attacks.byzantine import ATTACKS, Byzantine, flipped
from g2d.core.engine import SerialEngine
from g2d.core.types import silent, unsaid
from g2d.defence.federating import _Federation, check_settings, federate, simulation
from g2d.errors import PopulationError, SealingError, SettingsError, TaskError, VaultError
from g2d.protect import sealing
from g2d.settings import Settings, build
from g2d.tasks.inference import accuracy, load_model
from g2d.tasks.splits import Split
from g2d.training.federated.answers import ANSWERS, AnswerFile
from g2d.training.federated.bases import train_base
from g2d.training.federated.messages import ANSWER, decode
from g2d.training.federated.networks import Networks, check_plan
from g2d.training.federated.server import Server
from g2d.training.federated.simulate import Hostile
from g2d.training.federated.stages import Asked
from g2d.vault.federated import FEDERATED
from g2d.vault.sealing import changing
from g2d.vault.vault import Vault
from tiny_tables import TINY

FEW = {
    "clients": 6, "f": 1, "rule": "multi-krum", "mix": False, "rounds": 10, "early_rounds": 2,
    "fork_rounds": 2, "local_steps": 5, "local_rate": 0.5, "root": 2, "alpha": 0.0,
    "momentum": 0.3, "member_drop": 0.9,
}  # fmt: skip


def settings(**federated):
    tables = {"task": {"name": "digits"}, **TINY, "federated": FEW | federated}
    tables["population"] = TINY["population"] | {
        "members": 2, "basins": 1, "batch": 32, "pool": 60
    }  # fmt: skip
    return build(Settings, tables, "tests")


def base_of(digits, given, attack=None, count=1, folder=None, progress=lambda *_: None, said=None):
    known = ATTACKS.get(attack, attack)
    hostile = Hostile(known, count) if known else None
    sim = simulation(digits, given, hostile, (said if said is not None else []).append)
    sim.folder = folder
    return sim, train_base(sim, progress)


@pytest.fixture(scope="module")
def honest(digits):
    return base_of(digits, settings())


def test_clients_train_together_and_records_stay(honest, digits):
    sim, found = honest
    assert found.accuracy > 0.5
    assert found.alone < found.accuracy
    assert not any(closed.skipped for closed in found.server.closed)
    assert sum(len(client.records) for client in sim.clients.values()) == len(digits.splits.train)
    record = next(iter(sim.clients.values())).records.x[0].numpy().tobytes()
    assert record not in stage_of(sim).ask()


def test_a_member_keeps_what_the_base_knew(honest, digits):
    """At the base's rate attacks that it learns threw it back to chance."""
    sim, base = honest
    start = base.server.vector
    sim.send("base-0", start)
    found = sim.train("member-0", start, 3, ("base-0",)).vector
    state = sim.networks.state(found, sim.like)
    assert accuracy(load_model(digits, state), digits.splits.gate) > base.accuracy - 0.1
    assert not np.array_equal(found, start)


def test_malicious_clients_take_the_mean_and_not_a_robust_rule(honest, digits):
    mean = settings(rule="mean", f=0, clip=0.0)
    _, taken = base_of(digits, mean, "sign-flip")
    _, borne = base_of(digits, settings(), "sign-flip")
    assert taken.accuracy < 0.4
    assert borne.accuracy > taken.accuracy + 0.2
    assert honest[1].accuracy > taken.accuracy + 0.2


def test_poisoned_records_and_every_rule_run(digits):
    for attack, rule in (("label-flip", "fltrust"), ("alie", "centred-clipping")):
        given = settings(rule=rule, rounds=2, local_steps=1, dropout=0.1, stragglers=0.1)
        sim, found = base_of(digits, given, attack)
        assert np.isfinite(found.server.vector).all()
        if attack == "label-flip":
            one = sim.clients["client-05"].records
            known = {(x.numpy().tobytes(), int(y)) for x, y in _pairs(digits.splits.train)}
            assert not {(x.numpy().tobytes(), int(y)) for x, y in _pairs(one)} <= known


def stage_of(sim, folder=None):
    """A stage that begins where the clients' networks do."""
    start = sim.networks.vector(sim.like)
    asked = Asked("base-0", 4, 32)
    return Server(
        sim.networks.form, start, asked, sim.settings.federated, sim.identities, folder
    )  # fmt: skip


def test_where_all_answers_are_lost_there_is_no_network(digits):
    said: list[str] = []
    with pytest.raises(PopulationError, match=r"not one of 2 rounds .* no client has answered"):
        base_of(digits, settings(rounds=2, dropout=1.0), said=said)
    assert said == [f"round {k} of base-0 is skipped: no client has answered" for k in (0, 1)]


def _pairs(split):
    return zip(split.x, split.y, strict=True)


class KilledError(Exception):
    pass


def test_a_run_that_is_killed_ends_with_the_same_bytes(digits, tmp_path, monkeypatch):
    given = settings(rounds=6, local_steps=1, dropout=0.2, stragglers=0.5, deadline=3, f=0)
    hostile = Byzantine("replaced", poison=flipped, replaces=True)

    def trained(name, progress=lambda *_: None):
        return base_of(digits, given, hostile, 2, tmp_path / name, progress)[1].server

    whole, take = trained("whole"), Server.take

    def at_one(stage, done, total):
        if done == 1:
            raise KilledError

    def until_the_last(self, data, sender):
        if sender == "client-05":
            raise KilledError
        return take(self, data, sender)

    with pytest.raises(KilledError):
        trained("killed", at_one)
    with monkeypatch.context() as patch:  # within a round, one malicious answer is there already
        patch.setattr(Server, "take", until_the_last)
        with pytest.raises(KilledError):
            trained("killed")
    kept = AnswerFile(tmp_path / "killed" / "base-0" / ANSWERS, 1 << 24)
    assert "client-04" in dict(kept.read(1))
    again = trained("killed")
    assert again.vector.tobytes() == whole.vector.tobytes()
    assert again.closed == whole.closed
    assert sum(closed.late for closed in whole.closed) > 0


def test_a_client_answers_twice_alike_and_knows_what_no_client_does(honest, digits):
    sim = honest[0]
    client = sim.clients["client-01"]
    message = stage_of(sim).ask()
    first = client.answer(message)
    assert client.answer(message) == first
    assert decode(first, sim.networks.form, ANSWER).identity == "client-01"
    empty = type(client)(
        "client-09", digits, Split(digits.splits.train.x[:0], digits.splits.train.y[:0]),
        sim.settings, sim.networks, sim.like,
    )  # fmt: skip
    assert empty.answer(message) is None
    plan = {"steps": 1, "rate": 0.1, "momentum": 0.9, "batch": 8, "repelled": []}
    assert check_plan(plan)
    for change in (
        {"steps": 10**9}, {"steps": True}, {"rate": float("nan")}, {"momentum": 1.0},
        {"repelled": "all"}, {"batch": 0},
    ):  # fmt: skip
        assert not check_plan(plan | change)


def test_networks_are_vectors_and_back(digits):
    networks = Networks.of(digits)
    state = digits.model(1).state_dict()
    again = networks.state(networks.vector(state), digits.model(2).state_dict())
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_a_population_is_kept_resumed_fitted_and_named_in_manifests(digits, tmp_path):
    given, path = settings(), tmp_path / "vault"
    hostile = Hostile(ATTACKS["ipm"], 1)
    with g2d.Defence.create("digits", path, given) as defence:

        def killed(stage, done, total):
            if stage == "population" and done == 1:
                raise KilledError

        with pytest.raises(KilledError):
            federate(defence.task, defence.vault, given, hostile, killed, [].append)
        with pytest.raises(PopulationError, match="1 of 2 members that clients train"):
            defence.populate(SerialEngine())
        for other, attack in ((given, None), (given.override(federated__f=0), hostile)):
            with pytest.raises(VaultError, match="trained with other settings"):
                federate(defence.task, defence.vault, other, attack, killed, [].append)
        (tmp_path / "vault.federated" / "begun").unlink()
        with pytest.raises(VaultError, match="use a new folder, or those"):
            federate(defence.task, defence.vault, given, None, killed, [].append)
        federate(defence.task, defence.vault, given, hostile, lambda *_: None, [].append)
        members = defence.vault.entries("member")
        assert [m.info["recipe"] for m in members] == ["repelled"] * 2
        assert not (tmp_path / "vault.federated").exists()
        defence.populate(SerialEngine())  # it is whole: nothing to do
        strict = given.override(federated__member_drop=0.05)
        work = _Federation(defence.task, defence.vault, strict, hostile, None, None)
        with pytest.raises(PopulationError, match=r"member 9 is right on .* it is not kept"):
            work._judge(9, defence.task.model(3).state_dict())
        defence.fit()
        noted = defence.generation().manifest["federated"]
    assert (noted["rule"], noted["malicious"], noted["simulated"]) == ("multi-krum", 1, True)
    assert noted["server_alone"] <= members[0].info["accuracy"] + 1


def test_a_base_below_the_servers_own_is_not_kept(digits, tmp_path):
    bad = settings(rule="mean", f=0, clip=0.0, rounds=6, root=200)
    hostile = Hostile(ATTACKS["sign-flip"], 1)
    with g2d.Defence.create("digits", tmp_path / "one", bad) as defence:
        with pytest.raises(PopulationError, match="the clients add nothing"):
            federate(defence.task, defence.vault, bad, hostile, lambda *_: None, [].append)
        assert defence.vault.entry("base") is None


@pytest.mark.parametrize(
    ("root", "words"),
    [(0, "root = 0: the base is held against nothing"), (10**6, "root asks for 1000000 records")],
)
def test_a_control_that_is_missing_or_smaller_than_asked_for_is_said(digits, root, words):
    said = []
    base_of(digits, settings(rounds=1, local_steps=1, root=root), said=said)
    assert any(words in line for line in said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"privacy__enabled": True}, "noise for whole clients drowns"),
        ({"watermark__key": "k"}, "would have to be sent the secret triggers"),
        ({"harden__recipe": ("l3",)}, "there is no recipe 'l3'"),
        ({"harden__recipe": ("watermark",)}, "what clients are not given"),
        ({"autoencoder__scope": ("*",)}, "leave the scope empty"),
        ({"population__recipe": "seeds"}, "take 'repelled' or 'forks'"),
        ({"federated__early_rounds": 0, "population__basins": 2}, "set basins = 1"),
        ({"federated__rule": "bulyan"}, r"4f \+ 3"),
        ({"federated__dropout": 0.7, "federated__stragglers": 0.5}, "1.2 of all answers"),
    ],
)
def test_what_clients_cannot_do_is_said_before_anything_is_trained(digits, change, words):
    with pytest.raises(SettingsError, match=words):
        check_settings(digits, settings().override(**change))


def test_the_command_trains_a_base_and_says_what_does_not_fit(tmp_path):
    file = tmp_path / "few.toml"
    file.write_text(settings(rounds=2, local_steps=1).to_toml())
    words = ["federated", "simulate", "digits", "--settings", str(file), "--attack", "alie"]
    told = succeed(*words).output
    assert "server alone accuracy" in told
    assert "rounds       2" in told
    for arguments, words in (
        (["--malicious", "2"], "add --attack NAME"),
        (["--attack", "alia", "--f", "1"], "Did you mean 'alie'"),
        (["--attack", "alie", "--f", "0"], "give --f, or --malicious"),
        (["--attack", "alie", "--malicious", "6"], "leave one honest client at least"),
        (["--rule", "mean", "--f", "1"], "bears no malicious client"),
        (["--set", "federated.secure=true"], "hides malicious ones, too"),
    ):
        whole = ["federated", "simulate", "digits", "--settings", str(file), *arguments]
        assert words in fail(*whole)


def test_a_model_that_is_not_float32_is_refused(digits):
    with pytest.raises(TaskError, match="build the model in float32"):
        Networks.of(_Double(digits))


class _Double:
    """A task whose model is of float64."""

    def __init__(self, task):
        self.name, self.splits = task.name, task.splits
        self._task = task

    def model(self, seed):
        return self._task.model(seed).double()


def test_a_sealed_vault_is_refused_since_clients_keep_plaintext_beside_it(digits, tmp_path):
    pytest.importorskip("cryptography")
    url = f"file:{tmp_path / 'custodian' / 'c.key'}"
    custodian = sealing.make_custodian(url)[0]
    with g2d.Defence.create("digits", tmp_path / "vault", settings()) as defence:
        changing.begin(defence.vault, custodian, url)
        with pytest.raises(SealingError, match="seal it afterwards"):
            federate(digits, defence.vault, settings(), None, silent, unsaid)
    assert not (tmp_path / "vault.federated").exists()


def test_settings_that_do_not_fit_leave_no_word_beside_a_vault(digits, tmp_path):
    """What they would have begun is what the right ones would then be refused for."""
    given = settings()
    with Vault.create(tmp_path / "vault", given.to_toml()) as vault:
        right = _Federation(digits, vault, given, None, silent, unsaid)
        info = {"settings": right.fingerprint, FEDERATED: {}}
        vault.put("base", 0, {"weights": b"b"}, info)
        wrong = _Federation(digits, vault, settings(f=0), None, silent, unsaid)
        with pytest.raises(VaultError, match="trained with other settings"):
            wrong.check_vault()
        assert not right.folder.exists()
        right.check_vault()
        vault.put("base", 0, {"weights": b"c"}, {})
        with pytest.raises(VaultError, match="no clients trained"):
            right.check_vault()
    with Vault.create(tmp_path / "new", given.to_toml()) as vault:  # no base yet
        _Federation(digits, vault, given, None, silent, unsaid).check_vault()
        wrong = _Federation(digits, vault, settings(f=0), None, silent, unsaid)
        with pytest.raises(VaultError, match=r"begun with other settings .* remove it"):
            wrong.check_vault()
