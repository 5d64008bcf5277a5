"""Generations that were released to hosts which do not hold the vault's key.

A release is a fresh key, wrapped for one host (`protect.attestation.release`), under which the data
keys of one generation's files lie once more. The record keeps it among the custodians, as kind
`RELEASE`; who holds the vault's key has no use for it. Attack pools are released to nobody: what
serves does not need them. Knows no torch.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from g2d.core.platforms import open_plain
from g2d.errors import DAMAGE, BrokenSealError, SealingError
from g2d.vault.ledger import connect, explained
from g2d.vault.records import generation_folder
from g2d.vault.sealing.envelope import About, head_of, unwrap_key, wrap_key
from g2d.vault.sealing.record import Held, Record, read_record, write_record

if TYPE_CHECKING:
    from g2d.vault.reading import VaultReader

__all__ = [
    "PURPOSE",
    "RELEASE",
    "Bundle",
    "context_of",
    "hold",
    "make_bundle",
    "released_key",
    "releases",
]

RELEASE = "release"
"""The kind by which a record tells releases from custodians."""

PURPOSE = b"g2d release 1\0"
"""What the context of a release begins with: no other key is taken from one."""

_KEPT_BACK = frozenset({"attacks"})


@dataclass(frozen=True)
class Bundle:
    """A release as the record holds it.

    Attributes:
        key: the fresh key, wrapped for the host. files: data keys by name, wrapped by that key.
    """

    key: bytes
    files: Mapping[str, bytes]

    def encode(self) -> bytes:
        """The bytes that the record keeps."""
        files = {name: base64.b64encode(data).decode() for name, data in self.files.items()}
        said = {"key": base64.b64encode(self.key).decode(), "files": files}
        return json.dumps(said, sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one; raises `SealingError` where it is damaged."""
        try:
            said = json.loads(data)
            files = {
                name: base64.b64decode(text, validate=True) for name, text in said["files"].items()
            }
            return cls(base64.b64decode(said["key"], validate=True), files)
        except DAMAGE as error:
            raise SealingError(
                "a release in the vault's ledger is damaged: have it released once more"
            ) from error


def context_of(vault: VaultReader, number: int) -> bytes:
    """What the fresh key of a release is bound to."""
    return PURPOSE + f"{vault.identity}\0{number}".encode()


def make_bundle(
    vault: VaultReader, record: Record, number: int, key: bytes, wrapped: bytes
) -> Bundle:
    """Wrap the data keys of a generation by a fresh key.

    Args:
        key: 32 bytes, used for this bundle alone. wrapped: the same, wrapped for the host.

    Raises:
        SealingError: a file is not sealed, or no custodian gives the vault's key.
        VaultError: there is no such generation.
    """
    if record.state not in ("sealing", "sealed"):
        raise SealingError(f"{vault.path} is being changed ({record.state}): finish that before")
    found = {}
    for name, digest in vault.generation(number).files.items():
        if name in _KEPT_BACK:
            continue
        about = vault.sealing.generation(number, name, digest)
        path = generation_folder(vault.path, number) / f"{name}.safetensors"
        try:
            with os.fdopen(open_plain(path), "rb") as file:
                head = head_of(file.read)
        except (OSError, BrokenSealError) as error:
            raise SealingError(
                f"{path} cannot be released ({error}): run `g2d vault seal {vault.path}`, or"
                " restore it from a backup"
            ) from error
        if head.about != about:
            raise SealingError(f"{path} is not what the ledger says: run `g2d verify {vault.path}`")
        found[name] = wrap_key(vault.sealing.data_key(record, head), key, about.context)
    return Bundle(wrapped, found)


def releases(record: Record, host: str = "") -> dict[int, list[Held]]:
    """Releases by number of their generation; with `host`, to that one alone."""
    found: dict[int, list[Held]] = {}
    for one in record.held:
        name, _, number = one.name.rpartition(" ")
        wanted = not host or name == _name(host, 0).rpartition(" ")[0]
        if one.kind == RELEASE and wanted and number.isdecimal() and len(number) < 20:
            found.setdefault(int(number), []).append(one)
    return found


def hold(
    vault: VaultReader, of: Record, host: str, number: int, bundle: Bundle, oldest: int = 0
) -> None:
    """Put a release into the vault's record, in place of an earlier one of the same generation.

    It is one row that sqlite guards: whoever writes the vault, a service's worker perhaps, is not
    waited for, and nothing of his is touched.

    Args:
        of: the record that the bundle was made by. oldest: releases of lower numbers to this host
            are dropped.

    Raises:
        SealingError: the vault got another key meanwhile, or is not sealed any more.
        VaultError: the ledger cannot be written.
    """
    with explained(vault.path, "written"), closing(connect(vault.path, "rw")) as ledger:
        ledger.execute("BEGIN IMMEDIATE")
        try:
            record = read_record(ledger.execute("SELECT record FROM sealing").fetchall())
            if record is None or record.key != of.key or record.state != of.state:
                raise SealingError(
                    f"how {vault.path} is sealed was changed meanwhile: release once more"
                )
            write_record(ledger, _with(record, host, number, bundle, oldest))
            ledger.execute("COMMIT")
        except BaseException:
            if ledger.in_transaction:
                ledger.execute("ROLLBACK")
            raise
        with suppress(sqlite3.Error):  # a copy of the ledger has it at once; else the next commit
            ledger.execute("PRAGMA busy_timeout = 200")  # ms
            ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _with(record: Record, host: str, number: int, bundle: Bundle, oldest: int) -> Record:
    gone = {
        one.number
        for released, held in releases(record, host).items()
        for one in held
        if released < oldest or released == number
    }
    left = tuple(one for one in record.held if one.number not in gone)
    return replace(record, held=left).with_held(
        RELEASE, _name(host, number), bundle.encode(), time.time()
    )


def _name(host: str, number: int) -> str:
    return f"release to {host}, generation {number}"


def released_key(
    vault: VaultReader, record: Record, about: About, unwrap: Callable[[bytes, bytes], bytes]
) -> bytes:
    """The data key of a generation's file, of a release to this host.

    Args:
        unwrap: of this host's custodian.

    Raises:
        SealingError: it was not released to this host, or is not opened in its state.
    """
    said: list[str] = []
    for one in releases(record).get(about.number, []):
        try:
            bundle = Bundle.decode(one.blob)
            if about.name not in bundle.files:
                raise SealingError(f"of generation {about.number} no {about.name} were released")
            key = unwrap(bundle.key, context_of(vault, about.number))
            return unwrap_key(bundle.files[about.name], key, about.context)
        except ValueError as error:
            said.append(f"a release in the ledger is damaged: {error}")
        except SealingError as error:
            said.append(str(error))
    raise SealingError(
        "; ".join(dict.fromkeys(said))
        or f"generation {about.number} was not released to this host: have it prove its state"
        " (`g2d attest ask` and `release`, where generations are made)"
    )
