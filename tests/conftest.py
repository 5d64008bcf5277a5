"""Shared fixtures: a tiny task and a tiny defence that take a second, and the shared data."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import g2d
from g2d.core.engine import SerialEngine
from g2d.settings import HardenSettings
from hardening import trained
from places import SHARED

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts a job in the background has it ignore Ctrl-C, and so would every child.
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)


TINY = {
    "population": {
        "members": 4,
        "basins": 2,
        "base_steps": 200,
        "early_steps": 60,
        "fork_steps": 60,
        "batch": 64,
        "pool": 128,
        "pool_steps": 3,
    },
    "autoencoder": {"steps": 40, "width": 32},
    "diffusion": {"steps": 200, "width": 32, "depth": 1, "sampler_steps": 10},
    "guidance": {"pool": 128, "pool_steps": 3, "latent_steps": 5, "polish_steps": 40},
    "gates": {"accuracy_drop": 0.2, "class_drop": 0.5, "stale_asr": 1.0, "pool": 64},
}


@pytest.fixture(scope="session")
def digits() -> g2d.Task:
    return g2d.load_task("digits")


@pytest.fixture(scope="session")
def tiny_settings() -> g2d.Settings:
    from g2d.settings import build

    return build(g2d.Settings, {"task": {"name": "digits"}, **TINY}, "tests")


@pytest.fixture(scope="session")
def tiny_vault(tmp_path_factory: pytest.TempPathFactory, tiny_settings: g2d.Settings) -> Path:
    """A vault of digits with population, generator and the base exposed; copy it to change it."""
    path = tmp_path_factory.mktemp("tiny") / "vault"
    with g2d.Defence.build("digits", path, tiny_settings, engine=SerialEngine()):
        pass
    return path


@pytest.fixture
def defence(tiny_vault: Path, tmp_path: Path) -> g2d.Defence:
    import shutil

    copy = tmp_path / "vault"
    shutil.copytree(tiny_vault, copy)
    with g2d.Defence.open(copy) as opened:
        yield opened


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    folder = SHARED / "mnist"
    if not folder.is_dir():
        pytest.skip(f"needs MNIST in {folder}")
    return folder


@pytest.fixture(scope="session")
def plain(digits: g2d.Task) -> nn.Module:
    return trained(digits, HardenSettings())


@pytest.fixture(scope="session")
def hardened(digits: g2d.Task) -> nn.Module:
    return trained(digits, HardenSettings(recipe=("adversarial",), steps=5))
