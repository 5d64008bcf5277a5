"""A vault that a test may change, and inputs."""

from __future__ import annotations

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
