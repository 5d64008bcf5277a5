"""Several processes on one vault, and real kills: nothing that was acknowledged is lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from g2d.errors import VaultError
from g2d.vault.vault import Vault
from vaults import SOURCES, WEIGHTS, WRITER, content, python, temporary_files

KILLS = 16  # a storm of a hundred: python -m benchmarks.hostile.storm


# -- several processes -----------------------------------------------------------------------------


def test_a_second_writer_is_refused_with_the_pid_of_the_first(vault):
    with pytest.raises(VaultError, match=rf"another g2d process \(pid {os.getpid()}\) is writing"):
        Vault.open(vault.path, write=True)
    code = "import sys; from g2d.vault.vault import Vault; Vault.open(sys.argv[1], write=True)"
    result = python(code, vault.path)
    assert f"another g2d process (pid {os.getpid()}) is writing" in result.stderr
    vault.close()
    assert python(code, vault.path).returncode == 0


def test_a_forked_worker_does_not_keep_the_lock(vault):
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.2)
        vault.close()
        with Vault.open(vault.path, write=True) as again:
            assert again.live() is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_readers_read_while_a_writer_writes(vault):
    vault.close()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", WRITER, str(vault.path), "0"],
        env={**os.environ, "PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE,
    )
    seen, until = [0], time.monotonic() + 300
    with process:
        assert process.stdout.readline() == b"open\n"
        with Vault.open(vault.path) as reader:
            while seen[-1] < 5 and time.monotonic() < until:
                seen.append(len(reader.generations()))
                for number in range(1, seen[-1] + 1):
                    assert reader.read_generation(number) == content(number)
                with Vault.open(vault.path) as other:
                    assert len(other.generations()) >= seen[-1]
        assert process.poll() is None
        process.kill()
    assert seen == sorted(seen)
    assert seen[-1] >= 5


def test_threads_share_a_writer(vault):
    threads = [
        threading.Thread(target=lambda: [vault.accept(WEIGHTS, {}) for _ in range(5)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [generation.number for generation in vault.generations()] == list(range(1, 21))


# -- kills -----------------------------------------------------------------------------------------


def check_promises(vault, lines, live_before):
    """Everything acknowledged is there, and everything that is there is whole."""
    promised = [line.split() for line in lines if line.endswith("\n")]
    numbers = {generation.number for generation in vault.generations()}
    assert numbers == set(range(1, len(numbers) + 1))
    assert {int(words[1]) for words in promised if words[0] == "accepted"} <= numbers
    for number in list(numbers)[-30:]:
        assert vault.read_generation(number) == content(number)
        assert json.loads(vault.read_generation(number, "manifest"))["number"] == number
    lives = [int(words[1]) for words in promised if words[0] == "live"]
    assert (vault.live() or 0) >= max([live_before, *lives])
    assert vault.exposures() == sorted(set(vault.exposures()))
    for kind in ("generator", "member"):
        turns = [entry.info["turn"] for entry in vault.entries(kind)]
        said = [int(words[1]) for words in promised if words[0] == kind]
        assert max(turns, default=0) >= max(said, default=0)
        for entry in vault.entries(kind):
            vault.read(entry)


@pytest.mark.slow
def test_kills_lose_nothing_that_was_acknowledged(folder):
    moments = random.Random(20)
    Vault.create(folder, "").close()
    live, acknowledged, turn = 0, 0, 0
    for kill in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", WRITER, str(folder), str(turn)],
            env={**os.environ, "PYTHONPATH": SOURCES},
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            # Every other one has promised something, however busy the machine is.
            heard = [process.stdout.readline() for _ in range(1 + kill % 2)]
            time.sleep(moments.uniform(0, 0.2))
            process.kill()
            lines = [*heard, *process.stdout.readlines()]
        assert heard[0] == "open\n"
        assert process.returncode == -signal.SIGKILL
        with Vault.open(folder) as reader:
            check_promises(reader, lines, live)
        with Vault.open(folder, write=True) as writer:
            check_promises(writer, lines, live)
            count = len(writer.generations())
            assert temporary_files(folder) == []
            assert len(list((folder / "generations").iterdir())) == count
            assert len(list(folder.glob("generator*"))) <= 1
            live = writer.live() or 0
            number = count + 1
            assert writer.accept({"weights": content(number)}, {}).number == number
        acknowledged += len(lines) - 1
        turn += len(lines)
    assert acknowledged >= KILLS // 2  # the kills did land among writes


# Dies at the n-th step that changes the disk; the ledger's own steps are sqlite's to keep.
DIES = """
import os, sys
from g2d.vault.vault import Vault
vault, left = Vault.open(sys.argv[1], write=True), int(sys.argv[3])
def dying(real):
    def step(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)
    return step
os.fsync = dying(os.fsync)
for name in ("rename", "replace", "unlink", "mkdir", "open"):
    setattr(os, name, dying(getattr(os, name)))
files = {"weights": b"new", "attacks": b"new"}
if sys.argv[2] == "accept":
    vault.accept(files, {}, activate=True)
elif sys.argv[2] == "put":
    vault.put("member", 0, files, {})
else:
    vault.delete("member")
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("action", ["accept", "put", "delete"])
def test_a_kill_at_every_step_leaves_all_or_nothing(tmp_path, action):
    old = {"weights": b"old", "attacks": b"old"}
    with Vault.create(tmp_path / "made", "") as vault:
        vault.put("member", 0, old, {})
        vault.accept(old, {}, activate=True)
    seen = set()
    for step in range(1, 60):
        copy = shutil.copytree(tmp_path / "made", tmp_path / f"{step}")
        result = python(DIES, copy, action, step)
        for write in (False, True):
            with Vault.open(copy, write=write) as vault:
                entry = vault.entry("member", 0)
                found = [vault.read(entry, name) for name in old] if entry else []
                assert len(set(found)) <= 1
                numbers = [generation.number for generation in vault.generations()]
                assert [vault.read_generation(1, name) for name in old] == [b"old", b"old"]
                assert vault.live() == numbers[-1]
                if numbers[1:]:
                    assert [vault.read_generation(2, name) for name in old] == [b"new", b"new"]
                new = (not entry) if action == "delete" else (b"new" in found or len(numbers) == 2)
        assert temporary_files(copy) == []
        assert len(list((copy / "population").iterdir())) == len(found)
        assert len(list((copy / "generations").iterdir())) == len(numbers)
        seen.add(new)
        if result.stdout:
            assert new
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
    else:
        pytest.fail("60 steps and not done")
    assert seen == ({True} if action == "delete" else {True, False})
    assert step > 3


def test_a_killed_create_can_be_repeated(folder):
    code = """
import os, sys, g2d.vault.ledger
from g2d.vault.vault import Vault
real = g2d.vault.ledger.write_file
def die(*arguments):
    real(*arguments)
    os.kill(os.getpid(), 9)
g2d.vault.ledger.write_file = die
Vault.create(sys.argv[1], "first")
"""
    assert python(code, folder).returncode == -signal.SIGKILL
    with pytest.raises(VaultError, match="create it again"):
        Vault.open(folder)
    with Vault.create(folder, "second") as vault:
        assert vault.settings_text == "second"
        assert vault.accept(WEIGHTS, {}).number == 1


def test_what_a_kill_leaves_is_ignored_then_removed(vault):
    entry = vault.put("member", 0, WEIGHTS, {})
    vault.accept(WEIGHTS, {})
    vault.close()
    orphan = vault.path / "generations/000002"
    orphan.mkdir()
    (orphan / "weights.safetensors").write_bytes(b"half")
    leftovers = [
        vault.path / ".tmp-task.toml",
        vault.path / "generator.v3.safetensors",
        vault.path / "teacher.v2.safetensors",
        vault.path / "population/.tmp-000001.safetensors",
        vault.path / "population/000001.attacks.safetensors",
    ]
    for path in leftovers:
        path.write_bytes(b"half")
    theirs = [vault.path / "notes.txt", vault.path / "population/mine.safetensors"]
    for path in theirs:
        path.write_bytes(b"mine")
    with Vault.open(vault.path) as reader:
        assert [generation.number for generation in reader.generations()] == [1]
        assert orphan.is_dir()
    with Vault.open(vault.path, write=True) as writer:
        assert not any(path.exists() for path in (orphan, *leftovers))
        assert all(path.exists() for path in theirs)
        assert writer.read(entry) == b"weights"
        assert writer.accept({"weights": b"2"}, {}).number == 2
        assert writer.read_generation(2) == b"2"
