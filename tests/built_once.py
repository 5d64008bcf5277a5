"""What a whole run builds once: workers of xdist share it by a file lock."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


class BuiltOnce:
    """Folders that the first who asks builds; `copy` gives each worker its own, which nobody else
    opens (an open ledger has files beside it that come and go)."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        base = factory.getbasetemp()
        shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
        self.folder, self.factory = shared / "built", factory
        self.folder.mkdir(exist_ok=True)

    def path(self, name: str, build: Callable[[Path], object]) -> Path:
        """The folder of this name; `build(path)` makes it. It is for reading only."""
        built = self.folder / name
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not built.exists():
                unfinished = self.folder / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                build(unfinished)
                unfinished.rename(built)
        return built

    def copy(self, name: str, build: Callable[[Path], object]) -> Path:
        """This process's own copy of that folder."""
        return Path(shutil.copytree(self.path(name, build), self.factory.mktemp(name) / name))
