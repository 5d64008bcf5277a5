"""Programs of other projects that tests run: where they are, and why a test is skipped."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """A program in $G2D_TOOLS, a folder, or beside this Python; skip the test where it is not."""
    for folder in filter(None, (os.environ.get("G2D_TOOLS"), Path(sys.executable).parent)):
        if found := shutil.which(name, path=str(folder)):
            return found
    pytest.skip(f"needs {name}, of the extra dev: make .venv/dev.stamp, or set G2D_TOOLS")
