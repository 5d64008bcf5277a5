"""The vault against the real thing: real kills, a real full disk, a real read-only folder."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import g2d
from g2d.errors import VaultError
from g2d.vault.vault import FORMAT, GenerationRecord, Vault

SOURCES = str(Path(next(iter(g2d.__path__))).parent)
NOBODY = 65534
WEIGHTS = {"weights": b"weights"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "a vault? #1 %é"  # characters that a careless sqlite URI would trip over


@pytest.fixture
def vault(folder):
    with Vault.create(folder, "[task]\n") as made:
        yield made


def python(code, *arguments, **options):
    """Run code in a fresh interpreter that can import g2d."""
    command = [sys.executable, "-S", "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    return subprocess.run(  # noqa: PLW1510 (the callers look)
        command, env=environment, capture_output=True, text=True, timeout=60, **options
    )


def temporary_files(path):
    return [found for found in path.rglob("*") if found.name.startswith(".tmp")]


def digest(data):
    return hashlib.sha256(data).hexdigest()


# -- round trips ---------------------------------------------------------------------------------


def test_create_makes_the_layout_and_reopens(folder):
    with Vault.create(folder, "[task]\nname = 'digits'\n") as vault:
        assert vault.path == folder
    with Vault.open(folder) as vault:
        assert vault.settings_text == "[task]\nname = 'digits'\n"
        assert (vault.entries("member"), vault.generations(), vault.live()) == ([], [], None)
        assert (vault.exposures(), vault.rejections(), vault.entry("base")) == ([], [], None)
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        assert ledger.execute("PRAGMA user_version").fetchone() == (FORMAT,)
        assert ledger.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_create_accepts_an_empty_folder_and_refuses_a_full_one(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    Vault.create(empty, "").close()
    with pytest.raises(VaultError, match=r"not an empty|already"):
        Vault.create(empty, "")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "task.toml").write_text("mine")
    with pytest.raises(VaultError, match="not an empty"):
        Vault.create(taken, "")
    assert [item.name for item in taken.iterdir()] == ["task.toml"]
    assert (taken / "task.toml").read_text() == "mine"
    with pytest.raises(VaultError, match="not an empty"):
        Vault.create(taken / "task.toml", "")


def test_settings_are_replaced(vault):
    vault.write_settings("[task]\nname = 'größer'\n")
    assert vault.settings_text == "[task]\nname = 'größer'\n"
    (vault.path / "task.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(VaultError, match="UTF-8"):
        _ = vault.settings_text


@pytest.mark.parametrize(
    ("kind", "index", "files"),
    [
        ("base", 0, ["base.safetensors", "base.attacks.safetensors"]),
        ("generator", 0, ["generator.safetensors", "generator.attacks.safetensors"]),
        ("early", 3, ["early/000003.safetensors", "early/000003.attacks.safetensors"]),
        ("member", 12, ["population/000012.safetensors", "population/000012.attacks.safetensors"]),
    ],
)
def test_entries_come_back_from_documented_paths(vault, kind, index, files):
    info = {"seed": 1, "pair": [1, 2], "loss": float("inf")}
    put = vault.put(kind, index, {"weights": b"w" * 1000, "attacks": b""}, info)
    assert put.files == {"weights": digest(b"w" * 1000), "attacks": digest(b"")}
    assert put.info == info
    with Vault.open(vault.path) as reader:
        assert reader.entries(kind) == [put] == [reader.entry(kind, index)]
        assert reader.read(put) == b"w" * 1000
        assert reader.read(put, "attacks") == b""
    assert all((vault.path / name).is_file() for name in files)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=300),
    info=st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False)),
)
def test_whatever_is_put_comes_back(vault, data, info):
    entry = vault.put("member", 0, {"weights": data}, info)
    assert vault.entry("member", 0) == entry
    assert (vault.read(entry), entry.info) == (data, info)


def test_entries_are_sorted_and_deleted_by_kind(vault):
    for index in (10, 2, 0):
        vault.put("member", index, {"weights": bytes([index])}, {})
    vault.put("early", 1, WEIGHTS, {})
    assert [entry.index for entry in vault.entries("member")] == [0, 2, 10]
    vault.delete("member")
    assert vault.entries("member") == []
    assert list((vault.path / "population").iterdir()) == []
    assert [entry.index for entry in vault.entries("early")] == [1]


def test_a_replaced_entry_has_new_bytes_and_leaves_no_old_ones(vault):
    old = vault.put("generator", 0, {"weights": b"old", "extra": b"x"}, {})
    for turn in range(3):
        new = vault.put("generator", 0, {"weights": b"new%d" % turn}, {"turn": turn})
    assert vault.entries("generator") == [new]
    assert vault.read(new) == b"new2"
    assert [path.name for path in vault.path.glob("generator*")] == ["generator.v4.safetensors"]
    with pytest.raises(VaultError, match="replaced or deleted"):
        vault.read(old)


def test_bad_entries_are_refused(vault):
    for kind, index, files, info in [
        ("members", 0, WEIGHTS, {}),
        ("member", -1, WEIGHTS, {}),
        ("generator", 1, WEIGHTS, {}),
        ("member", 0, {"../escape": b""}, {}),
        ("member", 0, {"v2": b""}, {}),
        ("member", 0, WEIGHTS, {"set": {1, 2}}),
    ]:
        with pytest.raises(VaultError):
            vault.put(kind, index, files, info)
    assert vault.entries("member") == []
    with pytest.raises(VaultError, match="Did you mean 'weights'"):
        vault.read(vault.put("base", 0, WEIGHTS, {}), "weight")


# -- generations ---------------------------------------------------------------------------------


def test_generations_come_back_with_their_manifest(vault):
    first = vault.accept({"weights": b"1", "attacks": b"a"}, {"seed": 7, "gates": {"asr": 0.1}})
    second = vault.accept(WEIGHTS, {}, activate=True)
    assert (first.number, second.number) == (1, 2)
    written = json.loads((vault.path / "generations/000001/manifest.json").read_text())
    assert written == first.manifest
    assert written["number"] == 1
    assert (written["seed"], written["gates"]) == (7, {"asr": 0.1})
    assert written["files"] == {"weights": digest(b"1"), "attacks": digest(b"a")} == first.files
    with Vault.open(vault.path) as reader:
        assert reader.generations() == [first, second]
        assert reader.generation(1) == first
        assert isinstance(reader.generation(2), GenerationRecord)
        assert reader.read_generation(1) == b"1"
        assert reader.read_generation(1, "attacks") == b"a"
        assert json.loads(reader.read_generation(1, "manifest")) == written
        assert reader.live() == 2
        with pytest.raises(VaultError, match="no generation 3; its last one is 2"):
            reader.read_generation(3)
        with pytest.raises(VaultError, match="no file 'attacks'"):
            reader.read_generation(2, "attacks")


def test_bad_generations_are_refused(vault):
    for files, manifest in [
        ({"attacks": b""}, {}),
        ({**WEIGHTS, "manifest": b""}, {}),
        (WEIGHTS, {"number": 9}),
        (WEIGHTS, {"gate": float("nan")}),
    ]:
        with pytest.raises(VaultError):
            vault.accept(files, manifest)
    assert vault.generations() == []
    assert list((vault.path / "generations").iterdir()) == []


def test_replay_is_refused_and_numbers_only_rise(vault):
    for _ in range(4):
        vault.accept(WEIGHTS, {})
    for number in (1, 3, 3):
        vault.activate(number)
    assert (vault.live(), vault.exposures()) == (3, [1, 3])
    for number in (1, 2):
        with pytest.raises(VaultError, match="replay"):
            vault.activate(number)
    with pytest.raises(VaultError, match="no generation 9"):
        vault.activate(9)
    assert (vault.live(), vault.exposures()) == (3, [1, 3])
    vault.activate(4)
    assert vault.exposures() == [1, 3, 4]
    assert vault.exposures(2) == [3, 4]


def test_rejections_are_kept_in_order(vault):
    for reason in ("accuracy", "distance"):
        vault.reject({"reasons": [reason]})
    with Vault.open(vault.path) as reader:
        assert reader.rejections() == [{"reasons": ["accuracy"]}, {"reasons": ["distance"]}]


# -- what can be wrong with a vault ----------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named(vault, damage):
    entry = vault.put("member", 1, {"weights": b"w" * 100}, {})
    vault.accept({"weights": b"g" * 100}, {})
    for name, read in [
        ("population/000001.safetensors", lambda: vault.read(entry)),
        ("generations/000001/weights.safetensors", lambda: vault.read_generation(1)),
        ("generations/000001/manifest.json", lambda: vault.read_generation(1, "manifest")),
    ]:
        path = vault.path / name
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[50] ^= 1
            path.write_bytes(data)
        elif damage == "truncate":
            path.write_bytes(data[:-1])
        else:
            path.unlink()
        with pytest.raises(VaultError, match="restore it from a backup") as error:
            read()
        assert str(path) in str(error.value)


def test_what_is_not_a_vault_is_said_to_be_none(tmp_path):
    with pytest.raises(VaultError, match="no such folder"):
        Vault.open(tmp_path / "absent")
    with pytest.raises(VaultError, match="not a vault"):
        Vault.open(tmp_path, write=True)
    assert list(tmp_path.iterdir()) == []
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as other:
        other.execute("CREATE TABLE songs (title)")
    with pytest.raises(VaultError, match="not a vault"):
        Vault.open(tmp_path)


def test_a_newer_format_asks_for_an_upgrade(vault):
    vault.close()
    leftover = vault.path / "generations" / "000009"
    leftover.mkdir()
    with closing(sqlite3.connect(vault.path / "ledger.sqlite")) as ledger:
        ledger.execute("PRAGMA user_version = 7")
    for write in (False, True):
        with pytest.raises(VaultError, match=r"format 7.* format 1.*upgrade g2d"):
            Vault.open(vault.path, write=write)
    assert leftover.is_dir()  # nothing of a newer vault is touched


@pytest.mark.parametrize("where", [0, 4096])
def test_a_corrupt_ledger_is_said_to_be_corrupt(vault, where):
    for _ in range(20):
        vault.accept(WEIGHTS, {"x": "y" * 500})
    vault.close()
    with (vault.path / "ledger.sqlite").open("r+b") as file:
        file.seek(where)
        file.write(b"\xa5" * 3000)
    with pytest.raises(VaultError, match="ledger is corrupt"):
        Vault.open(vault.path)
    with pytest.raises(VaultError, match="ledger is corrupt"):
        Vault.open(vault.path, write=True)
    assert len(list((vault.path / "generations").iterdir())) == 20


def test_a_closed_or_reading_vault_refuses_to_write(vault):
    with Vault.open(vault.path) as reader, pytest.raises(VaultError, match="write=True"):
        reader.accept(WEIGHTS, {})
    vault.close()
    with pytest.raises(VaultError, match="write=True"):
        vault.put("base", 0, WEIGHTS, {})
    with pytest.raises(VaultError, match="cannot be read"):
        vault.generations()


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
    seen, until = [0], time.monotonic() + 30
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


def test_fifty_kills_lose_nothing_that_was_acknowledged(folder):
    moments = random.Random(20)
    Vault.create(folder, "").close()
    live, acknowledged, turn = 0, 0, 0
    for _ in range(50):
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", WRITER, str(folder), str(turn)],
            env={**os.environ, "PYTHONPATH": SOURCES},
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            first = process.stdout.readline()
            time.sleep(moments.uniform(0, 0.2))
            process.kill()
            lines = [first, *process.stdout.readlines()]
        assert first == "open\n"
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
    assert acknowledged > 50  # the kills did land among writes


# Dies at the n-th step that changes the disk; the ledger's own steps are sqlite's to keep.
DIES = """
import os, pathlib, sys
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
for name in ("rename", "unlink", "mkdir", "open"):
    setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
files = {"weights": b"new", "attacks": b"new"}
if sys.argv[2] == "accept":
    vault.accept(files, {}, activate=True)
elif sys.argv[2] == "put":
    vault.put("member", 0, files, {})
else:
    vault.delete("member")
print("done", flush=True)
"""


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


# -- disks that refuse -----------------------------------------------------------------------------


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


def fill(path):
    with path.open("wb", 0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def reject_many(vault):
    for _ in range(1000):
        vault.reject({"x": "x" * 5000})


def state(vault):
    return vault.generations(), vault.exposures(), vault.entries("member"), vault.settings_text


def test_a_really_full_disk_changes_nothing_accepted(tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=1m"), Vault.create(disk / "vault", "[task]\n") as vault:
        entry = vault.put("member", 0, {"weights": b"m" * 5000}, {})
        vault.accept({"weights": b"1" * 5000}, {}, activate=True)
        before = state(vault)
        for attempt in (
            lambda: vault.accept({"weights": b"x" * 2**20}, {}, activate=True),
            lambda: vault.put("member", 0, {"weights": b"x" * 2**20}, {}),
            lambda: vault.write_settings("x" * 2**20),
            lambda: vault.reject({"x": "x" * 2**20}),
        ):
            with pytest.raises(
                VaultError, match=r"disk is full.*what was accepted is safe"
            ) as error:
                attempt()
            assert "\n" not in str(error.value)
            assert state(vault) == before
            assert temporary_files(disk) == []
        fill(disk / "fill")
        with pytest.raises(VaultError, match="disk is full"):  # the ledger itself does not fit
            reject_many(vault)
        with pytest.raises(VaultError, match="disk is full"):
            Vault.create(disk / "other", "")
        os.truncate(disk / "fill", (disk / "fill").stat().st_size - 20480)
        with pytest.raises(VaultError, match="disk is full"):  # sqlite calls this an I/O error
            Vault.create(disk / "another", "")
        fill(disk / "more")
        vault.close()
        with Vault.open(disk / "vault") as reader:  # a service can restart on a full disk
            assert state(reader) == before
            assert reader.read(entry) == b"m" * 5000
        (disk / "fill").unlink()
        (disk / "more").unlink()
        with Vault.open(disk / "vault", write=True) as again:
            assert state(again) == before
            assert again.accept(WEIGHTS, {}).number == 2
        Vault.create(disk / "other", "").close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_an_injected_disk_error_changes_nothing_accepted(vault, monkeypatch, number, call):
    vault.put("member", 0, WEIGHTS, {})
    vault.accept(WEIGHTS, {}, activate=True)
    before = state(vault)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    for attempt in (
        lambda: vault.accept(WEIGHTS, {}, activate=True),
        lambda: vault.put("member", 0, {"weights": b"new"}, {}),
        lambda: vault.write_settings("new"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*((os, "fsync") if call == "fsync" else (Path, "rename")), refuse)
            with pytest.raises(VaultError, match="what was accepted is safe") as error:
                attempt()
        assert ("disk is full" in str(error.value)) == (number != errno.EIO)
        assert temporary_files(vault.path) == []
        assert len(list((vault.path / "generations").iterdir())) == 1
    assert state(vault)[:3] == before[:3]
    assert vault.read(vault.entry("member", 0)) == b"weights"
    assert vault.accept(WEIGHTS, {}).number == 2


class Interrupted:
    """A ledger whose COMMIT raises, before or after it is done."""

    def __init__(self, ledger, error, done):
        self.ledger, self.error, self.done = ledger, error, done

    def __getattr__(self, name):
        return getattr(self.ledger, name)

    def execute(self, statement, *values):
        if statement == "COMMIT" and not self.done:
            raise self.error
        result = self.ledger.execute(statement, *values)
        if statement == "COMMIT":
            raise self.error
        return result


def test_a_failed_commit_changes_nothing(vault):
    vault.accept(WEIGHTS, {}, activate=True)
    before, ledger = state(vault), vault._ledger
    vault._ledger = Interrupted(ledger, sqlite3.OperationalError("disk I/O error"), done=False)
    for attempt in (
        lambda: vault.accept(WEIGHTS, {}, activate=True),
        lambda: vault.put("member", 0, WEIGHTS, {}),
    ):
        with pytest.raises(VaultError, match="disk I/O error"):
            attempt()
    vault._ledger = ledger
    assert state(vault) == before
    assert len(list((vault.path / "generations").iterdir())) == 1
    assert list((vault.path / "population").iterdir()) == []


def test_ctrl_c_right_after_the_commit_keeps_the_generation(vault):
    ledger = vault._ledger
    vault._ledger = Interrupted(ledger, KeyboardInterrupt, done=True)
    with pytest.raises(KeyboardInterrupt):
        vault.accept(WEIGHTS, {})
    vault._ledger = ledger
    assert vault.read_generation(1) == b"weights"


READ_ONLY = """
import os, sys
from g2d.vault.vault import Vault
from g2d.errors import VaultError
if os.geteuid() == 0:  # after the imports: nobody may not be able to read this interpreter
    os.setgid(65534)
    os.setuid(65534)
path = sys.argv[1]
with Vault.open(path) as vault:
    print(vault.live(), vault.read_generation(1), vault.read(vault.entry("member", 0)))
    if sys.argv[2:]:
        input()
        print(vault.live())
for attempt in (lambda: Vault.open(path, write=True), lambda: Vault.create(path + "/new", "")):
    try:
        attempt()
        print("written")
    except VaultError as error:
        print(error)
"""


@pytest.fixture
def open_path():
    """A folder that user nobody can reach (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        yield Path(parent) / "vault"


@pytest.mark.parametrize("leftover", ["clean", "writer open", "killed"])
def test_a_read_only_folder_can_be_read_and_says_why_it_cannot_be_written(open_path, leftover):
    vault = Vault.create(open_path, "[task]\n")
    vault.put("member", 0, WEIGHTS, {})
    vault.accept(WEIGHTS, {}, activate=True)
    if leftover == "clean":
        vault.close()
        assert not (open_path / "ledger.sqlite-wal").exists()
    if leftover == "killed":  # its log and shared memory stay behind
        copy = open_path.with_name("copy")
        shutil.copytree(open_path, copy)
        vault.close()
        open_path = copy
        assert (open_path / "ledger.sqlite-wal").stat().st_size
    make_writable(open_path, False)
    try:
        result = python(READ_ONLY, open_path)
    finally:
        make_writable(open_path, True)
        vault.close()
    lines = result.stdout.splitlines()
    assert lines[0] == "1 b'weights' b'weights'", result.stderr
    assert len(lines) == 3
    assert all("access" in line and "read-only" in line for line in lines[1:])


def make_writable(path, writable):
    for item in (path, *path.rglob("*")):
        item.chmod(
            (0o755 if writable else 0o555) if item.is_dir() else 0o644 if writable else 0o444
        )


def test_a_reader_of_a_read_only_folder_sees_what_a_later_writer_commits(open_path):
    if os.geteuid() != 0:
        pytest.skip("needs a reader of another user than the writer")
    vault = Vault.create(open_path, "")
    vault.put("member", 0, WEIGHTS, {})
    vault.accept(WEIGHTS, {}, activate=True)
    vault.close()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", READ_ONLY, str(open_path), "wait"],
        env={**os.environ, "PYTHONPATH": SOURCES, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline().startswith("1 ")
        with Vault.open(open_path, write=True) as vault:
            vault.accept(WEIGHTS, {}, activate=True)
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.readline() == "2\n"
        process.stdout.read()


def test_a_read_only_medium_can_be_read_and_says_why_it_cannot_be_written(tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        with Vault.create(disk / "vault", "[task]\n") as vault:
            vault.accept(WEIGHTS, {}, activate=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with Vault.open(disk / "vault") as reader:
            assert (reader.live(), reader.read_generation(1)) == (1, b"weights")
        with pytest.raises(VaultError, match=r"cannot be written \(.*[Rr]ead-only.*access"):
            Vault.open(disk / "vault", write=True)
        with pytest.raises(VaultError, match="cannot be written"):
            Vault.create(disk / "other", "")


def test_a_writer_that_loses_its_permissions_changes_nothing(open_path):
    with Vault.create(open_path, "") as vault:
        vault.accept(WEIGHTS, {}, activate=True)
    if os.geteuid() == 0:
        for item in (open_path, *open_path.rglob("*")):
            os.chown(item, NOBODY, NOBODY)
    code = """
import os, sys
from g2d.vault.vault import Vault
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
vault = Vault.open(sys.argv[1], write=True)
os.chmod(sys.argv[1] + "/generations", 0o555)
try:
    vault.accept({"weights": b"2"}, {}, activate=True)
except Exception as error:
    print(type(error).__name__, error)
print(vault.live(), len(vault.generations()))
os.chmod(sys.argv[1] + "/generations", 0o755)
print(vault.accept({"weights": b"2"}, {}, activate=True).number)
"""
    lines = python(code, open_path).stdout.splitlines()
    assert lines[0].startswith("VaultError")
    assert "Give this user access" in lines[0]
    assert lines[1:] == ["1 1", "2"]


# -- what it must not do ---------------------------------------------------------------------------


def test_it_imports_no_torch_and_no_pickle():
    code = "import sys, g2d.vault; print(sorted({'torch', 'numpy', 'pickle'} & set(sys.modules)))"
    assert python(code).stdout == "[]\n"
