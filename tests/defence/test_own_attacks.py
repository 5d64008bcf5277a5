"""A whole defence of token ids: by substitution, by the task's own attack, and without one."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import g2d
import words
from commands import succeed
from g2d.core.engine import SerialEngine
from g2d.core.types import silent
from g2d.errors import DataError, SettingsError
from g2d.redteam import attack
from g2d.redteam.chains import task_identity
from g2d.report import page
from g2d.report.results import UNATTACKED
from g2d.service.http.protocol import RequestError, parse
from g2d.service.loader import VaultLoader
from g2d.settings import Settings, build
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import unpack


def vault_of(once, name):
    def made(path):
        with g2d.Defence.build(f"words:{name}", path, engine=SerialEngine()) as defence:
            defence.generate()

    return once.copy(name, made)


@pytest.fixture(scope="module")
def tokens(once):
    return vault_of(once, "by_tokens")


@pytest.fixture(scope="module")
def none(once):
    return vault_of(once, "unattacked")


def pools(vault):
    with Vault.open(vault) as opened:
        return [unpack(opened.read_generation(k, "attacks")) for k in (1, 2)]


def test_pools_of_tokens_stay_within_the_budget_and_gates_use_them(tokens):
    task = words.by_tokens()
    for pool in pools(tokens):
        for name, split in (("guide", task.splits.guiding), ("gate", task.splits.gate)):
            clean = split.x[pool[f"{name}_index"]]
            kept = pool[name].to(clean.dtype)
            assert len(kept) > 10
            assert task.tokens.violation(kept, clean) == ""
            assert bool((kept != clean).any())
    with Vault.open(tokens) as vault:
        gates = {gate["gate"]: gate for gate in vault.generation(2).manifest["gates"]}
        figures = vault.generation(2).manifest["figures"]
    assert figures["stale_asr"] == gates["stale_asr"]["value"]
    assert "robust_accuracy" in figures


def test_without_an_attack_nothing_claims_to_be_measured(none):
    assert all(len(pool["guide"]) == len(pool["gate"]) == 0 for pool in pools(none))
    with Vault.open(none) as vault:
        manifest = vault.generation(2).manifest
    assert {gate["gate"] for gate in manifest["gates"]} == {
        "finite", "accuracy", "class", "distance"
    }  # fmt: skip
    assert set(manifest["figures"]) == {"clean_accuracy", "distance", "examples"}
    shown = succeed("show", none).stdout
    assert shown.splitlines()[0].strip() == UNATTACKED
    assert "attacked by nothing" in shown
    assert " 0.00% " not in shown.split("generations")[1].split("rejected")[0].replace("-", "")


def test_show_says_that_tokens_are_substituted(tokens):
    shown = succeed("show", tokens).stdout
    assert "attacked by substitution of tokens" in shown
    assert "eps" not in shown.splitlines()[1]


def test_the_red_team_attacks_tokens_and_says_what_it_cannot(tokens, tmp_path):
    results = attack(
        tokens, threats=["white-box", "universal"], quick=True, out=tmp_path, engine=SerialEngine()
    )
    rows = {(row["family"], row["chain"]): row for row in results["rows"]}
    mine = rows["white-box", "generated"]
    assert (mine["status"], mine["attack"]) == ("ok", "2 substitutions, beam of 4")
    assert mine["eps"] is None
    other = rows["universal", "generated"]
    assert (other["status"], other["value"]) == ("not measured", None)
    assert "token ids" in other["note"]
    assert results["attack"] == "substitution of tokens, at most 2 tokens replaced"


def test_the_red_team_and_its_report_say_first_that_nothing_attacked(none, tmp_path):
    results = attack(none, quick=True, threats=["stale", "adaptive"], out=tmp_path,
                     engine=SerialEngine())  # fmt: skip
    assert [row["status"] for row in results["rows"]] == ["not measured"] * 2
    assert all(row["value"] is None for row in results["rows"])
    assert "attack = 'none'" in results["rows"][0]["note"]
    assert page.markdown(results).startswith("**attack = 'none': nothing attacked this model.")
    page.render_results(results, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    lead = text.index('<p class="lead">')
    assert "nothing attacked this model" in text[lead : lead + 120]
    assert "0.0 %" not in text


def test_a_vault_does_not_change_how_it_is_attacked(none):
    with pytest.raises(DataError, match=r"attacked by nothing.*says an attack of its own now"):
        g2d.Defence.open(none, words.by_itself())


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        (words.unattacked, {"guidance": {"robust_weight": 1.0}}, "robust_weight asks for attacks"),
        (words.unattacked, {"harden": {"recipe": ["adversarial"]}}, "'adversarial' asks for"),
        (words.by_tokens, {"guidance": {"robust_eps": 0.1}}, "robust_eps is of the ball of eps"),
        (words.by_itself, {"harden": {"eps": 0.1}}, "an attack of its own: its budget stands"),
    ],
)
def test_settings_of_attacks_that_there_are_not_are_refused(task, given, said, tmp_path):
    settings = build(Settings, words.SETTINGS | {"guidance": {}} | given, "test")
    with pytest.raises(SettingsError, match=said):
        g2d.Defence.create(task(), tmp_path / "vault", settings)
    assert not (tmp_path / "vault").exists()


def test_the_service_takes_ids_and_refuses_those_outside_the_vocabulary(tokens):
    loader = VaultLoader(tokens, "g2d")
    try:
        snapshot, _ = loader.first()
        x, _ = words.messages()

        def asked(ids):
            tensor = {"name": "input", "shape": [1, 6], "datatype": "INT64", "data": ids}
            return parse(json.dumps({"inputs": [tensor]}).encode(), None, loader.model, 8).x

        with g2d.Defence.open(tokens) as defence:
            expected = defence.generation().model()(x[:1]).detach().numpy()
        assert np.allclose(snapshot.predict(asked(x[0].tolist())), expected, atol=1e-6)
        for wrong in ([20, 2, 3, 4, 5, 6], [-1, 2, 3, 4, 5, 6]):
            with pytest.raises(RequestError, match="every token id must lie in 0 to 19"):
                asked(wrong)
        with pytest.raises(RequestError, match="whole numbers"):
            asked([2.5, 2, 3, 4, 5, 6])
    finally:
        loader.close()


def test_hardening_guidance_and_gates_meet_the_tasks_own_attack(tmp_path):
    more = {"harden": {"recipe": ["adversarial"], "clean": 1.0, "checks": 1, "ramp": 0.0}}
    more |= {"guidance": words.SETTINGS["guidance"] | {"robust_weight": 1.0, "joint_weight": 1.0}}
    more |= {"gates": words.SETTINGS["gates"] | {"robust": 1e-6, "stale_share": 1.0}}
    small = words.SETTINGS["population"] | {"base_steps": 30, "early_steps": 5, "fork_steps": 5}
    settings = build(Settings, words.SETTINGS | more | {"population": small}, "test")
    calls = []

    def own(models, x, y, generator):
        calls.append(
            (len(models), all(not p.requires_grad for m in models for p in m.parameters()))
        )
        return words.flip_first(models, x, y, generator)

    task = words.make(attack=own)
    with g2d.Defence.build(task, tmp_path / "vault", settings, SerialEngine(), silent) as defence:
        number = len(calls)
        defence.generate()
        pool = defence.exposure(2).gate
        gates = {gate["gate"] for gate in defence.generation().manifest["gates"]}
    assert {"stale_asr", "robust", "stale_share"} <= gates
    assert number > 30  # each step of a hardened training
    assert len(calls) > number
    assert bool(torch.isin(pool.x[:, 0], torch.tensor([2, 19])).all())


def test_another_attack_is_another_task_to_what_the_red_team_keeps(tokens):
    """Rows that were measured under one budget say nothing of another."""
    with g2d.Defence.open(tokens, write=False) as defence:
        told = []
        for task in (
            words.by_tokens(), words.by_tokens(),
            words.make(tokens=dataclasses.replace(words.BUDGET, candidates=(3, 4))),
            words.make(tokens=dataclasses.replace(words.BUDGET, fixed=(0,))),
            words.by_itself(), words.make(attack=imported),
            words.make(tokens=words.BUDGET, metrics={"rate": imported}),
        ):  # fmt: skip
            defence.task = task
            told.append(json.dumps(task_identity(defence), sort_keys=True))
    assert told[0] == told[1]
    assert len(set(told)) == len(told) - 1


def imported(models, x, y=None, generator=None):
    return x.clone()
