"""What macOS or Windows lacks is taken away; everything that a machine without it needs works."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time

import pytest

from g2d.core import platforms
from g2d.core.files import write_bytes
from g2d.errors import VaultError
from g2d.vault import ledger
from g2d.vault.plain import read_plain
from g2d.vault.vault import Vault

LACKING = (
    "sched_getaffinity", "fork", "forkpty", "register_at_fork", "getuid", "geteuid", "fchmod",
    "pwrite", "pread", "sysconf", "setpriority", "PRIO_PROCESS", "sched_setscheduler",
    "SCHED_IDLE", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "getloadavg", "killpg",
    "getpgid", "setsid", "mkfifo", "posix_spawn",
)  # fmt: skip

BARE = f"""
import asyncio, json, multiprocessing, os, pathlib, select, signal, socket, sqlite3, sys, tempfile
import numpy, safetensors.torch, scipy.optimize, torch, typer  # these have ports of their own
import concurrent.futures.process, opacus.optimizers, subprocess, uvicorn
for name in {LACKING}:
    if hasattr(os, name):
        delattr(os, name)
del select.poll
for name in [name for name in dir(signal) if name.startswith("SIG") and name.isalnum()]:
    if name not in ("SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV"):
        delattr(signal, name)
for name in ("fcntl", "resource", "uvloop", "pwd", "grp"):
    sys.modules[name] = None
"""

STORY = """
import importlib, pkgutil
import g2d
for module in pkgutil.walk_packages(g2d.__path__, "g2d."):
    if not module.name.startswith(("g2d.service.cluster", "g2d.__main__")):
        importlib.import_module(module.name)
found = {"numbered": [], "said": []}
from g2d.core import platforms
from g2d.core.engine import LocalEngine
from g2d.errors import VaultError
from g2d.service.http import options, server
from g2d.vault.vault import Vault
options.require()
found["connections"] = server.connections(lambda *a, **k: found["said"].append(k))
vault = sys.argv[1]
with g2d.Defence.open(vault) as defence:
    found["made"] = defence.generate()[0].number
    try:
        Vault.open(vault, write=True)
    except VaultError as error:
        found["locked"] = str(error)
Vault.open(vault, write=True).close()
with LocalEngine(1) as engine:
    found["worker"] = list(engine.run(abs, [-3]))
print(json.dumps(found))
"""


def test_the_whole_way_without_what_other_systems_lack(tiny_vault, tmp_path):
    copy = tmp_path / "vault"
    shutil.copytree(tiny_vault, copy)
    script = tmp_path / "script.py"
    script.write_text(BARE + "if __name__ == '__main__':\n" + _indented(STORY))
    run = subprocess.run(
        [sys.executable, script, copy], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["made"] == 2
    assert "another g2d process (pid " in found["locked"]
    assert found["worker"] == [[0, 3]]
    assert found["connections"] == 2000


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def test_cores_are_counted_without_an_affinity(monkeypatch):
    assert platforms.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert platforms.cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert platforms.cores() == 1


@pytest.fixture
def bare(monkeypatch):
    for name in LACKING:
        monkeypatch.delattr(os, name, raising=False)


def test_links_and_pipes_are_refused_without_flags_for_it(bare_pipe, tmp_path, bare):
    plain, link = tmp_path / "plain", tmp_path / "link"
    plain.write_bytes(b"kept")
    link.symlink_to(plain)
    assert read_plain(plain, 10) == b"kept"
    with pytest.raises(OSError, match="link"):
        read_plain(link, 10)
    with pytest.raises(OSError, match="not a plain file"):
        read_plain(bare_pipe, 10)


@pytest.fixture
def bare_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_file_swapped_for_a_link_meanwhile_is_refused(tmp_path, bare, monkeypatch):
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.write_bytes(b"kept")
    other.write_bytes(b"theirs")
    opened = os.open

    def swap(path, *rest, **more):
        plain.unlink()
        plain.symlink_to(other)
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(OSError, match="changed"):
        read_plain(plain, 10)


def test_files_are_written_as_windows_writes_them(tmp_path, bare, monkeypatch):
    rename = os.rename

    def onto_nothing(source, target):
        if os.path.lexists(target):
            raise FileExistsError(183, "it is there already", target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", onto_nothing)
    write_bytes(tmp_path / "file", b"one")
    write_bytes(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_writers_lock_without_flock(tmp_path, monkeypatch):
    monkeypatch.setattr(platforms, "fcntl", None)
    with Vault.create(tmp_path / "v", "") as first:
        with pytest.raises(VaultError, match=rf"pid {os.getpid()}\) is writing"):
            Vault.open(tmp_path / "v", write=True)
        Vault.open(tmp_path / "v").close()  # readers are free
        assert first.live() is None
    with Vault.open(tmp_path / "v", write=True) as again:
        code = (
            "import sys; from g2d.core import platforms; platforms.fcntl = None\n"
            "from g2d.vault.ledger import take_lock; from pathlib import Path\n"
            "take_lock(Path(sys.argv[1]))"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, again.path], capture_output=True, text=True, check=False
        )
        assert "is writing" in run.stderr
    from g2d.vault.verify import verify

    assert verify(tmp_path / "v") == []


def test_a_folder_left_half_made_without_flock_can_be_created_again(tmp_path, monkeypatch):
    monkeypatch.setattr(platforms, "fcntl", None)
    (tmp_path / "v").mkdir()
    ledger.take_lock(tmp_path / "v").close()
    Vault.create(tmp_path / "v", "").close()
    with Vault.open(tmp_path / "v") as vault:
        assert not vault.begun()


def test_lines_of_a_process_are_awaited_without_poll(monkeypatch):
    monkeypatch.delattr(select, "poll")
    code = "import sys; sys.stdin.readline(); print('heard', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        lines = platforms.Lines(process.stdout)
        assert not lines.ready(0.01)
        process.stdin.write(b"\n")
        until = time.monotonic() + 60
        while not lines.ready(0.05):
            assert time.monotonic() < until
        assert lines.read() == b"heard\n"
        process.kill()
        while not lines.ready(0.05):
            assert time.monotonic() < until
        assert lines.read() == b""
