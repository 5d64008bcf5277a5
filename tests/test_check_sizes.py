"""The check of sizes: what is too long is named, what is not is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from places import ROOT


@pytest.fixture
def check_sizes():
    spec = importlib.util.spec_from_file_location("check_sizes", ROOT / ".ci" / "check_sizes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkout(root: Path, files: dict[str, str]) -> Path:
    (root / "src" / "g2d").mkdir(parents=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_is_too_long_or_in_the_wrong_place_is_named(check_sizes, tmp_path):
    method = "class A:\n    @property\n    def f(self):\n" + "        x = 1\n" * 59
    root = checkout(tmp_path, {
        "src/g2d/core/long.py": "\n" * 401, "tests/test_a.py": method,
        "benchmarks/b.py": "\n" * 400 + "def f():\n" + "    x = 1\n" * 60, "src/g2d/stray.py": "",
    })  # fmt: skip
    assert check_sizes.offenders(root) == [
        "src/g2d/core/long.py: 401 lines, at most 400",
        "tests/test_a.py:2: f has 61 lines, at most 60",
        "benchmarks/b.py: 461 lines, at most 400",
        "benchmarks/b.py:401: f has 61 lines, at most 60",
        "stray.py lies in the root of g2d; a layer's folder is its place",
    ]


def test_what_just_fits_is_let_pass(check_sizes, tmp_path):
    function = "def f():\n" + "    x = 1\n" * 59
    root = checkout(tmp_path, {
        "src/g2d/errors.py": "\n" * 400, "tests/test_a.py": function, "src/g2d/py.typed": "",
    })  # fmt: skip
    assert check_sizes.offenders(root) == []
