"""A generation keeps its canaries, closed to others, and its signature covers them."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from g2d.defence import costs, generations
from g2d.defence.generations import GenerationStore
from g2d.errors import DataWarning
from g2d.protect.canaries.kept import judge_scores, read_canaries
from g2d.settings import Settings
from g2d.tasks.inference import predict
from g2d.vault.signing import SigningKey
from g2d.vault.vault import Vault
from signed import refused


def test_each_generation_keeps_its_own(rotated_vault, digits):
    import g2d

    with g2d.Defence.open(rotated_vault, write=False) as opened:
        found = {n: read_canaries(opened.vault, n) for n in (1, 2, 3)}
        models = {n: opened.generation(n).model() for n in found}
        files = opened.vault.generation(3).files
    for number, model in models.items():
        logits = predict(model, torch.from_numpy(found[number].x)).numpy()
        assert not judge_scores(found[number], logits).changed
    logits = predict(models[2], torch.from_numpy(found[3].x)).numpy()
    assert judge_scores(found[3], logits).changed
    file = rotated_vault / "generations" / "000003" / "canaries.safetensors"
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(files) == {"weights", "attacks", "canaries"}


def test_without_canaries_a_generation_is_what_it_was(defence):
    settings = defence.settings.override(canaries__count=0)
    store = GenerationStore(defence.task, defence.vault, settings)
    first, state = defence.vault.generation(1), defence.generation(1).state
    seed = 5
    store.accept(state, {"gates": []}, seed, False)
    plain = defence.vault.generation(2)
    GenerationStore(defence.task, defence.vault, defence.settings).accept(
        state, {"gates": []}, seed, False
    )
    more = defence.vault.generation(3)
    assert set(plain.files) == {"weights", "attacks"}
    assert read_canaries(defence.vault, 2) is None
    assert {name: more.files[name] for name in plain.files} == plain.files
    assert plain.files["weights"] == first.files["weights"]
    assert set(plain.manifest) == set(more.manifest)


def test_a_network_that_takes_no_moved_inputs_gets_none_and_the_manifest_says_so(
    defence, monkeypatch
):
    def fail(*_):
        raise IndexError("index out of\nrange in self")

    monkeypatch.setattr(generations, "make_canaries", fail)
    store = GenerationStore(defence.task, defence.vault, defence.settings)
    state = defence.generation(1).state
    with pytest.warns(DataWarning, match="IndexError: index out of range in self"):
        store.accept(state, {"gates": []}, 5, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.accept(state, {"gates": []}, 6, False)  # told once
    for number in (2, 3):
        made = defence.vault.generation(number)
        assert set(made.files) == {"weights", "attacks"}
        assert made.manifest["canaries"] == "none: IndexError: index out of range in self"
        assert read_canaries(defence.vault, number) is None


def test_what_they_cost_is_estimated(digits, monkeypatch):
    # Two measurements of a busy machine differ by more than canaries cost.
    steps = costs.Steps(plain=1e-4, base=1e-4, member=1e-4, forward=1e-5, gradient=1e-4)
    monkeypatch.setattr(costs, "measure", lambda *_: (steps, 10_000))
    few, many = (
        costs.estimate(digits, Settings().override(canaries__count=count), 10_000)[-1]
        for count in (0, 1024)
    )
    assert many.cpu > 1.1 * few.cpu
    assert many.memory >= few.memory + 1_000_000
    assert many.disk > few.disk


def test_default_settings_write_nothing_into_digests():
    assert "canaries" not in Settings().to_toml(former=True)
    assert "[canaries]" in Settings().to_toml()


def test_a_signature_covers_them(signed_vault, key_file, tmp_path):
    vault = shutil.copytree(signed_vault, tmp_path / "vault")
    file = vault / "generations" / "000003" / "canaries.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    key = SigningKey.read(key_file).public
    with Vault.open(vault) as opened:
        assert refused(opened, 3, key) == "digest"
