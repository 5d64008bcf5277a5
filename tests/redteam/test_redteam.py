"""The red team's runner: resume, reuse, failures and bad input; its cases are our own."""

import dataclasses
import json
import pickle

import pytest
import torch

import g2d
from g2d.core.engine import SerialEngine
from g2d.errors import G2DError, SettingsError
from g2d.redteam import attack, chains, context, runner
from g2d.redteam.context import Case
from g2d.redteam.scoring import accuracy_rate, share
from g2d.redteam.threat import CONTROLS, Threat
from g2d.redteam.threats import _MODULES, threats
from sites import IDS, generate

pytest.importorskip("art")
pytest.importorskip("pyautoattack")


class Tricks:
    """A family of two cases: one scores the chain's networks, one breaks when told to."""

    def __init__(self):
        self.ran, self.broken = [], False
        self.chains = CONTROLS | {"draws", "rival"}  # `exposed` has them ready

    def plan(self, spec):
        return [
            Case("tricks", "score", "generated", (("n", 20),), ("generated",), cost=2.0),
            Case("tricks", "breaks", "soup", (), ("soup",)),
        ]

    def run(self, case, bench):
        self.ran.append(case.name)
        if case.name == "breaks" and self.broken:
            raise ValueError("a library stumbled")
        models = bench.models(bench.chain(case.chain).networks)
        clean = accuracy_rate(models[-1], bench.examples(20))
        return [bench.row(case, "trick", "nothing", "none", share(1, 20), clean_accuracy=clean)]

    @property
    def threat(self):
        about = ("tricks", "Tricks", "Does it hold?", IDS)
        return Threat(*about, self.plan, self.run, chains=self.chains)


@pytest.fixture
def tricks():
    return Tricks()


def run(vault, tricks, engine=None, **more):
    engine = engine or SerialEngine()
    return attack(vault, threats=[tricks.threat], quick=True, engine=engine, **more)


@pytest.mark.slow
def test_rows_carry_what_the_schema_says(vault, tricks):
    results = run(vault, tricks)
    assert results["format"] == "g2d-redteam-1"
    assert json.loads((vault / "redteam" / "results.json").read_text()) == results
    assert {row["target"] for row in results["rows"]} == {"generated", "soup"}
    for row in results["rows"]:
        assert row["kind"] == "trick"
        assert row["identifiers"]["atlas"] == "AML.T0043"
        assert row["status"] == "ok"
        assert row["harm"] == row["value"]["value"] == 0.05
        assert row["seconds"] >= 0
    sizes = {name: chain["networks"] for name, chain in results["chains"].items()}
    assert sizes["generated"] == 4
    assert sizes["frozen"] == 1
    assert sizes["retrained"] == 2
    assert sizes["draws"] > 0
    assert sizes["rival"] == sizes["unrotated"] == 1
    assert "attacker" not in sizes  # only what the chosen families read is made
    assert results["summary"] is None  # the overview belongs to the whole matrix


@pytest.mark.slow
def test_a_second_run_reuses_every_row(vault, tricks):
    first = run(vault, tricks)
    tricks.ran.clear()
    stages = []
    again = run(vault, tricks, progress=lambda *step: stages.append(step))
    assert tricks.ran == []
    assert again["rows"] == first["rows"]
    assert again["reused"] == again["cases"] == 2
    assert ("networks", 11, 11) in stages


@pytest.mark.slow
def test_other_settings_or_networks_are_other_rows(vault, tricks):
    tricks.chains = CONTROLS  # no draws and rivals of the new generation: nobody reads them
    run(vault, tricks)
    tricks.ran.clear()
    run(vault, tricks, eps=0.1)
    assert sorted(tricks.ran) == ["breaks", "score"]
    tricks.ran.clear()
    with g2d.Defence.open(vault) as defence:
        generate(defence, 1)
    run(vault, tricks)
    # The soup is made of members: a new generation does not touch it.
    assert tricks.ran == ["score"]


@pytest.mark.slow
def test_a_broken_case_is_a_row_and_the_rest_goes_on(vault, tricks):
    tricks.broken = True
    rows = {row["target"]: row for row in run(vault, tricks)["rows"]}
    assert rows["soup"]["status"] == "failed"
    assert "a library stumbled" in rows["soup"]["note"]
    assert rows["soup"]["value"] is None
    assert rows["soup"]["kind"] == "failed"
    assert rows["generated"]["status"] == "ok"
    tricks.broken = False
    tricks.ran.clear()
    assert {row["status"] for row in run(vault, tricks)["rows"]} == {"ok"}
    assert tricks.ran == ["breaks"]  # failures are not kept, the rest is


@pytest.mark.slow
def test_an_interrupted_run_goes_on(vault, tricks):
    class Interrupted(SerialEngine):
        def run(self, work, payloads):
            for position, payload in enumerate(payloads):
                if isinstance(payload, tuple) and position == 1:
                    raise KeyboardInterrupt
                yield position, work(payload)

    with pytest.raises(KeyboardInterrupt):
        run(vault, tricks, Interrupted())
    assert not (vault / "redteam" / "results.json").exists()
    before = list(tricks.ran)
    results = run(vault, tricks)
    assert results["reused"] == 1
    assert before == ["score"]
    assert tricks.ran == ["score", "breaks"]


@pytest.mark.slow
def test_changed_networks_are_refused(vault, tricks):
    run(vault, tricks)
    for file in (vault / "redteam" / "rows").iterdir():
        file.unlink()

    class Meddling(SerialEngine):
        def run(self, work, payloads):
            for position, payload in enumerate(payloads):
                if isinstance(payload, tuple):
                    for network in payload[0].chains["soup"].networks:
                        with open(network.path, "ab") as file:
                            file.write(b"x")
                yield position, work(payload)

    context._context.cache_clear()  # a fresh worker has no network in memory yet
    results = run(vault, tricks, Meddling())
    (row,) = [row for row in results["rows"] if row["target"] == "soup"]
    assert row["status"] == "failed"
    assert "has changed" in row["note"]


@pytest.mark.slow
def test_a_changed_model_or_range_is_another_task(vault, tricks, monkeypatch):
    run(vault, tricks)
    tricks.ran.clear()
    real = chains.task_identity
    monkeypatch.setattr(
        runner, "task_identity", lambda defence: real(defence) | {"function": "another"}
    )
    run(vault, tricks)
    assert sorted(tricks.ran) == ["breaks", "score"]


def test_a_task_is_told_apart_by_what_its_model_computes(vault, monkeypatch):
    with g2d.Defence.open(vault) as defence:
        before = chains.task_identity(defence)
        assert before == chains.task_identity(defence)
        monkeypatch.setattr(
            chains, "predict", lambda model, x: 2 * torch.ones(len(x), defence.task.classes)
        )
        after = chains.task_identity(defence)
    assert {name for name in before if before[name] != after[name]} == {"function"}


@pytest.mark.slow
def test_the_same_process_sees_new_generations(vault):
    with SerialEngine() as engine:
        attack(vault, threats=["universal"], quick=True, engine=engine)
        with g2d.Defence.open(vault) as defence:
            generate(defence, 1)
        results = attack(vault, threats=["universal"], quick=True, engine=engine)
    assert {row["status"] for row in results["rows"]} == {"ok"}
    assert results["chains"]["generated"]["networks"] == 5


@pytest.mark.slow
def test_probabilities_are_detected_and_said(vault, tricks, monkeypatch):
    load = context.load_model
    monkeypatch.setattr(
        context,
        "load_model",
        lambda task, state: torch.nn.Sequential(load(task, state), torch.nn.Softmax(1)),
    )
    context._context.cache_clear()
    tricks.chains = CONTROLS  # those of another seed are all made anew
    results = run(vault, tricks, seed=3)
    context._context.cache_clear()
    assert all("probabilities, not logits" in row["note"] for row in results["rows"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threats": ["stael"]}, "Did you mean 'stale'"),
        ({"eps": 1.5}, "at most 1"),
        ({"eps": -0.1}, "above 0"),
        ({"n": 3}, "at least 10"),
    ],
)
def test_bad_input_says_what_to_do(exposed, options, message):
    with pytest.raises(SettingsError, match=message):
        attack(exposed, engine=SerialEngine(), **options)


def test_a_vault_without_generations(tmp_path, tiny_settings):
    with g2d.Defence.create("digits", tmp_path / "vault", tiny_settings):
        pass
    with pytest.raises(SettingsError, match="no generation to attack"):
        attack(tmp_path / "vault", engine=SerialEngine())


def test_missing_libraries_are_named(exposed, monkeypatch):
    from g2d.attacks import art

    monkeypatch.setattr(art.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(G2DError, match=r"g2d\[attacks\]"):
        attack(exposed, engine=SerialEngine())


def test_every_family_is_complete():
    assert len(threats()) == len(_MODULES)
    for name, threat in threats().items():
        assert threat.name == name
        assert threat.title
        assert threat.question.endswith("?")
        assert all(dataclasses.astuple(threat.ids))
        assert threat.module.startswith("g2d.redteam.threats.")
        assert pickle.loads(pickle.dumps(threat)) == threat
        told = json.loads(json.dumps(threat.as_json()))
        assert told["curve"] is None or {"x", "by", "across", "title"} <= set(told["curve"])


def test_services_are_attacked_by_families_that_can(exposed):
    with pytest.raises(SettingsError, match="only on a vault"):
        attack(
            exposed, threats=["stale"], service=runner.ServiceAddress("http://127.0.0.1:1", "m"),
            engine=SerialEngine(), quick=True,
        )  # fmt: skip
