"""A vault that a test may change, and inputs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import g2d


@pytest.fixture
def vault(tiny_vault: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vault, tmp_path / "vault"))


@pytest.fixture
def x(digits: g2d.Task) -> np.ndarray:
    return digits.splits.test.x[:5].numpy()


@pytest.fixture
def loader(vault):
    from g2d.service.loader import VaultLoader

    opened = VaultLoader(vault, "g2d")
    yield opened
    opened.close()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that we start run like anybody else: on a busy machine idle ones wait for minutes."""
    monkeypatch.delattr(os, "SCHED_IDLE", raising=False)
    monkeypatch.setattr("g2d.service.worker.NICE", 0)
    monkeypatch.setattr("g2d.service.worker._SHARE", 0.0)
