"""Fixtures of the command line's tests: a terminal without surprises, a vault of one's own."""

import shutil
from pathlib import Path

import pytest

from g2d.cli import main as cli
from g2d.core.engine import SerialEngine
from vaults import SOURCES, open_path

__all__ = ["open_path"]


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    """No setting of the machine that runs the tests changes what is printed."""
    for name in ("G2D_TRACEBACK", "G2D_THREADS", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", SOURCES)  # for spawned workers and subprocesses


@pytest.fixture
def vault(tiny_vault, tmp_path):
    return Path(shutil.copytree(tiny_vault, tmp_path / "vault"))


@pytest.fixture
def serial(monkeypatch):
    """Jobs run in this process: no worker has to start where none proves anything."""
    monkeypatch.setattr(cli, "make_engine", lambda *_: SerialEngine())
