"""Disks that refuse: a real full one, a real read-only one, injected errors."""

import errno
import os
import shutil
import sqlite3
import subprocess
from contextlib import suppress

import pytest

from g2d.errors import VaultError
from g2d.vault.vault import Vault
from vaults import (
    WEIGHTS,
    mounted,
    python,
    state,
    temporary_files,
)

# -- disks that refuse -----------------------------------------------------------------------------


def fill(path):
    with path.open("wb", 0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def reject_many(vault):
    for _ in range(1000):
        vault.reject({"x": "x" * 5000})


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
            patch.setattr(os, call, refuse)
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


NOBODY = 65534
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
for attempt in (lambda: Vault.open(path, write=True), lambda: Vault.create(path + "/new", "")):
    try:
        attempt()
        print("written")
    except VaultError as error:
        print(error)
"""


@pytest.mark.parametrize("leftover", ["clean", "writer open", "killed"])
def test_a_read_only_folder_can_be_read_and_says_why_it_cannot_be_written(open_path, leftover):
    vault = Vault.create(open_path, "[task]\n")
    vault.put("member", 0, WEIGHTS, {})
    vault.accept(WEIGHTS, {}, activate=True)
    if leftover == "clean":
        vault.close()
        assert not (open_path / "ledger.sqlite-wal").exists()
    if leftover == "killed":  # its log and shared memory stay behind
        vault.reject({})
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
            (0o700 if writable else 0o555) if item.is_dir() else 0o600 if writable else 0o444
        )


def test_a_reader_of_a_read_only_folder_sees_what_a_later_writer_commits(tmp_path):
    disk, seen = tmp_path / "disk", tmp_path / "seen"
    seen.mkdir()
    with mounted(disk, "size=4m"):
        vault = Vault.create(disk / "vault", "")
        vault.accept(WEIGHTS, {}, activate=True)
        vault.close()
        subprocess.run(["mount", "--bind", str(disk), str(seen)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(seen)], check=True)
            with Vault.open(seen / "vault") as reader:
                assert reader.live() == 1
                with Vault.open(disk / "vault", write=True) as writer:
                    writer.accept(WEIGHTS, {}, activate=True)
                assert reader.live() == 2
        finally:
            subprocess.run(["umount", "-l", str(seen)], check=True)


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


def test_a_writer_that_loses_its_permissions_changes_nothing(open_path, monkeypatch):
    state = open_path.with_name("state")
    monkeypatch.setenv("G2D_STATE", str(state))
    with Vault.create(open_path, "") as vault:
        vault.accept(WEIGHTS, {}, activate=True)
    if os.geteuid() == 0:
        for item in (open_path, *open_path.rglob("*"), state, *state.rglob("*")):
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
os.chmod(sys.argv[1] + "/generations", 0o700)
print(vault.accept({"weights": b"2"}, {}, activate=True).number)
"""
    lines = python(code, open_path).stdout.splitlines()
    assert lines[0].startswith("VaultError")
    assert "Give this user access" in lines[0]
    assert lines[1:] == ["1 1", "2"]
