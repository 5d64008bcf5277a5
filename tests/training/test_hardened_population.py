"""Hardened populations and what is generated from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import g2d
from g2d.core.engine import SerialEngine
from g2d.errors import GenerationError, SettingsError, VaultError
from g2d.settings import PopulationSettings
from g2d.tasks import readers
from g2d.tasks.inference import load_model
from g2d.tasks.networks import crop_and_flip
from g2d.training.population import TrainingJob, build_population, run_job
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import unpack
from hardening import robust
from places import SHARED


def hard(settings: g2d.Settings, **changes) -> g2d.Settings:
    chosen = {"recipe": ["adversarial", "clamp"], "steps": 2} | changes
    return settings.override(**{f"harden__{k}": v for k, v in chosen.items()})


@pytest.mark.slow
def test_a_hardened_population_is_the_same_whatever_runs_it_and_cannot_change(
    tmp_path, tiny_settings, digits
):
    from g2d.core.engine import LocalEngine

    def made(name: str, engine, settings) -> dict[int, str]:
        path = tmp_path / name
        known = path.exists()
        with Vault.open(path, write=True) if known else Vault.create(path, "") as vault:
            entries = build_population(
                ("digits", "", 0, 0.0), vault, settings.population, engine, harden=settings.harden
            )
            return {entry.index: entry.files["weights"] for entry in entries}

    settings = hard(tiny_settings).override(
        population__base_steps=30, population__early_steps=12, population__fork_steps=12,
        population__members=2, population__batch=32, population__pool=32,
    )  # fmt: skip
    one = made("a", SerialEngine(), settings)
    with LocalEngine(2) as engine:
        assert made("b", engine, settings) == one
    with pytest.raises(VaultError, match="other settings"):
        made("a", SerialEngine(), hard(settings, steps=3))
    with Vault.open(tmp_path / "a") as vault:
        member = vault.entries("member")[0]
    assert 0 <= member.info["robust"] <= 1
    assert len(member.info["checks"]) == 11  # one more before a fork: does its start resist?


def test_without_early_steps_the_base_is_the_only_basin(tmp_path, tiny_settings):
    settings = tiny_settings.override(population__early_steps=0)
    with (
        Vault.create(tmp_path / "two", "") as vault,
        pytest.raises(SettingsError, match="basins = 1"),
    ):
        build_population(("digits", "", 0, 0.0), vault, settings.population, SerialEngine())
    one = settings.override(population__basins=1, population__members=2)
    with Vault.create(tmp_path / "one", "") as vault:
        build_population(("digits", "", 0, 0.0), vault, one.population, SerialEngine())
        base, early = vault.entry("base"), vault.entry("early", 0)
        assert unpack(vault.read(base)).keys() == unpack(vault.read(early)).keys()
        assert base.files["weights"] == early.files["weights"]


def test_the_bytes_of_plain_members_are_what_they_were_before_there_was_hardening(digits):
    """`repelled` without a recipe draws what it always drew, in the same order."""
    settings = PopulationSettings(fork_steps=3, batch=16, pool=8, pool_steps=1)
    pool = run_job(
        TrainingJob(digits, "base", 0, 0, "base", replace(settings, base_steps=3), None, ())
    )
    job = TrainingJob(digits, "member", 1, 0, "repelled", settings, pool.weights, (pool.attacks,))
    state = unpack(run_job(job).weights)
    total = sum(float(t.double().sum()) for t in state.values())
    assert total == pytest.approx(BEFORE, abs=1e-4)


BEFORE = 6.405374777756151


@pytest.mark.slow
def test_guidance_and_gate_keep_generations_robust(tmp_path, tiny_settings, digits):
    settings = hard(tiny_settings).override(
        guidance__robust_weight=1.0, guidance__robust_steps=3, gates__robust=0.05
    )
    with g2d.Defence.build("digits", tmp_path / "v", settings, engine=SerialEngine()) as defence:
        (made,) = defence.generate(1, seed=0)
        gates = {gate["gate"]: gate for gate in made.manifest["gates"]}
        assert gates["robust"]["passed"]
        assert {"clean_accuracy", "robust_accuracy", "stale_asr"} <= set(made.manifest["figures"])
        model = load_model(digits, made.state)
        assert robust(digits, model) > 0.1
        floor = replace(defence.settings.gates, robust=0.99, attempts=2)
        defence.settings = replace(defence.settings, gates=floor)
        with pytest.raises(GenerationError, match=r"most robust candidate reached \d+\.\d%"):
            defence.generate(1, seed=1)
        assert defence.vault.live() == made.number


def small_cifar_cnn() -> nn.Module:
    """With batch norm, whose statistics attacks must not move."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


@pytest.mark.slow
def test_colour_images_and_batch_norm_pass_through_a_hardened_population(tmp_path, tiny_settings):
    """A smoke test on CIFAR-10: everything runs and the gates decide; it claims no accuracy."""
    packed = SHARED / "cifar10" / "test_jpeg.npz"
    if not packed.is_file():
        pytest.skip(f"needs CIFAR-10 in {packed.parent}")
    images, labels = readers._read_packed(packed)
    splits = g2d.split_dataset(images[::16], labels[::16])  # they lie class by class
    task = g2d.Task("colour", small_cifar_cnn, splits, 10, eps=8 / 255, augment=crop_and_flip)
    settings = hard(tiny_settings, checks=2).override(
        population__base_steps=40, population__early_steps=15, population__fork_steps=15,
        guidance__robust_weight=0.5, guidance__robust_steps=1, gates__robust=0.01,
        gates__class_drop=1.0, gates__accuracy_drop=1.0,
    )  # fmt: skip
    with g2d.Defence.build(task, tmp_path / "v", settings, engine=SerialEngine()) as defence:
        (made,) = defence.generate(1, seed=0)
        figures = made.manifest["figures"]
        assert 0 < figures["robust_accuracy"] < 1
        assert 0 < figures["clean_accuracy"] < 1
        assert all(bool(torch.isfinite(t).all()) for t in made.state.values())
