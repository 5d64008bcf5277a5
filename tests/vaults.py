"""What the tests of the vault share: a fresh interpreter, a writer to kill, disks that refuse."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

import g2d

SOURCES = str(Path(next(iter(g2d.__path__))).parent)
WEIGHTS = {"weights": b"weights"}


def python(code, *arguments, **options):
    """Run code in a fresh interpreter that can import g2d."""
    command = [sys.executable, "-S", "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    return subprocess.run(  # noqa: PLW1510 (the callers look)
        command, env=environment, capture_output=True, text=True, timeout=300, **options
    )


def temporary_files(path):
    return [found for found in path.rglob("*") if found.name.startswith(".tmp")]


def private(path):
    """Close a vault to others, as it is made; git and old releases know no such modes."""
    for item in (path, *path.rglob("*")):
        item.chmod(0o700 if item.is_dir() else 0o600)
    return path


def digest(data):
    return hashlib.sha256(data).hexdigest()


def state(vault):
    return vault.generations(), vault.exposures(), vault.entries("member"), vault.settings_text


def content(number):
    return b"%d" % number * 3000


# Says what has been promised, after each promise: the parent checks every line after the kill.
WRITER = """
import sys
from g2d.vault.vault import Vault
vault = Vault.open(sys.argv[1], write=True)
print("open", flush=True)
turn = int(sys.argv[2])
while True:
    turn += 1
    number = (vault.generations() or [None])[-1]
    number = 1 + (number.number if number else 0)
    weights = b"%d" % number * 3000
    made = vault.accept({"weights": weights}, {"turn": turn}, activate=turn % 2 == 0)
    assert made.number == number
    print("accepted", number, flush=True)
    if turn % 2 == 0:
        print("live", number, flush=True)
    elif turn % 3 == 0:
        vault.activate(number)
        print("live", number, flush=True)
    vault.put("generator", 0, {"weights": weights}, {"turn": turn})
    print("generator", turn, flush=True)
    vault.put("member", turn % 5, {"weights": weights}, {"turn": turn})
    print("member", turn, flush=True)
"""


@pytest.fixture
def open_path():
    """A folder that user nobody can reach (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        yield Path(parent) / "vault"


@contextmanager
def mounted(path, *options):
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.call(command):
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
