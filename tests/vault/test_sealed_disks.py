"""A disk that is full while a vault is sealed, written, rekeyed, released from or unsealed."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from contextlib import suppress

import pytest

from g2d.errors import G2DError, VaultError
from g2d.protect import sealing
from g2d.vault.sealing import changing, released
from g2d.vault.sealing.envelope import is_sealed, new_key
from g2d.vault.sealing.rekeying import rekey
from g2d.vault.vault import Vault
from vaults import mounted, temporary_files

pytest.importorskip("cryptography")

CONTENTS = {("base", 0): b"base " * 900, ("member", 0): b"member " * 900}
WEIGHTS = [b"first " * 900, b"second " * 900]


def make(path):
    with Vault.create(path, "[task]\n") as vault:
        for (kind, index), data in CONTENTS.items():
            vault.put(kind, index, {"weights": data}, {})
        for data in WEIGHTS:
            vault.accept({"weights": data, "attacks": data[::-1]}, {}, activate=True)


def check(path):
    """All that was accepted is there, and what was half written is gone."""
    with Vault.open(path, write=True) as vault:
        for (kind, index), data in CONTENTS.items():
            assert vault.read(vault.entry(kind, index)) == data
        for number, data in enumerate(WEIGHTS, 1):
            assert vault.read_generation(number) == data
            assert vault.read_generation(number, "attacks") == data[::-1]
        assert (vault.live(), vault.last_number()) == (2, 2)
        record = vault.sealing.record
        if record is not None and record.state == "sealed":
            assert all(is_sealed(file.read_bytes()) for file in path.rglob("*.safetensors"))
    assert [file for file in temporary_files(path) if "ledger" not in file.name] == []


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("G2D_CUSTODIAN", raising=False)
    found = f"file:{tmp_path / 'custodian.key'}"
    sealing.make_custodian(found)
    return found


def seal(vault, url):
    changing.seal(vault, sealing.custodian(url), url)


def unseal(vault, url):
    changing.unseal(vault, sealing.custodian(url))


def rekey_it(vault, url):
    rekey(vault, None, sealing.custodian(url), url)


def add(vault, url):
    changing.add_custodian(vault, sealing.custodian(url), url)


def release(vault, url):
    key, record = new_key(), vault.sealing.record
    released.hold(vault, record, "host", 2, released.make_bundle(vault, record, 2, key, b"wrapped"))


def put(vault, url):
    vault.put("base", 0, {"weights": CONTENTS["base", 0]}, {})  # in the place of the former


OPERATIONS = {
    "seal": (seal, False), "unseal": (unseal, True), "rekey": (rekey_it, True), "put": (put, True),
    "add a custodian": (add, True), "release": (release, True),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_an_error_of_each_write_is_one_line_and_nothing_is_lost(
    name, call, url, tmp_path, monkeypatch
):
    operation, first = OPERATIONS[name]
    path, state = tmp_path / "vault", tmp_path / "state"
    make(path)
    if first:
        with Vault.open(path, write=True) as vault:
            seal(vault, url)
    for folder in (path, state):
        shutil.copytree(folder, tmp_path / f"{folder.name} before")
    real, failed = getattr(os, call), 0
    for moment in itertools.count():
        for folder in (path, state):
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / f"{folder.name} before", folder)
        left = itertools.count()

        def full(*arguments, moment=moment, left=left, **options):
            if next(left) >= moment:  # and it stays full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        with Vault.open(path, write=True) as vault, monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            try:
                operation(vault, url)
            except G2DError as error:
                failed, said = failed + 1, str(error)
            else:
                break
        assert "\n" not in said
        assert "No space left" in said
        check(path)
        if name in ("seal", "unseal", "rekey"):  # the same command goes on
            with Vault.open(path, write=True) as vault:
                operation(vault, url)
            check(path)
    check(path)
    writes = name not in ("add a custodian", "release")  # those are one commit of sqlite's
    assert failed > 5 * (name in ("seal", "unseal", "rekey")) or not writes


def test_a_really_full_disk_stops_each_step_and_loses_nothing(url, tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=512k"):
        make(disk / "vault")
        path, told = disk / "vault", {"seal": 0, "rekey": 0, "unseal": 0}
        for name in told:
            for room in range(2, 60):  # pages that are free
                fill(disk, room)
                try:
                    with Vault.open(path, write=True) as vault:
                        OPERATIONS[name][0](vault, url)
                    done = True
                except VaultError as error:
                    done, said = False, str(error)
                    told[name] += 1
                    full = "disk is full" in said and "\n" not in said
                assert done or full
                (disk / "filling").unlink()
                check(path)
                if done:
                    break
            else:
                raise AssertionError(name)
        assert min(told.values()) >= 2, told


def fill(disk, room):
    """Fill a disk up to some pages."""
    free = os.statvfs(disk).f_bavail
    with (disk / "filling").open("wb", 0) as file, suppress(OSError):
        for _ in range(max(0, free - room)):
            file.write(bytes(4096))
