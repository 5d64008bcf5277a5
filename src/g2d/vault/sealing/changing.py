"""Sealing a vault that is there, unsealing it, and who holds its key.

A vault is changed file by file, each replaced whole, and the ledger says from the first moment that
it is being done: a process that is killed leaves a vault that opens, and the same command goes on.
No plaintext is written on the way to a sealed vault. Knows no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from g2d.core.types import Progress, silent
from g2d.errors import BrokenSealError, SealingError
from g2d.vault.ledger import explained, read_file, sha256
from g2d.vault.placing import write
from g2d.vault.plain import check_folders
from g2d.vault.records import entry_file, generation_folder
from g2d.vault.sealing.custodian import Custodian
from g2d.vault.sealing.envelope import About, key_name, new_key, seal_file
from g2d.vault.sealing.others import TEXTS, check_alone, other_files, remove_halves
from g2d.vault.sealing.record import Record, drop_record, write_record
from g2d.vault.sealing.released import RELEASE
from g2d.vault.sealing.remembered import forget, leave, remember
from g2d.vault.sealing.sealer import unwrapped
from g2d.vault.vault import Vault

__all__ = [
    "Changed",
    "File",
    "add_custodian",
    "begin",
    "content_of",
    "put_record",
    "remove_custodian",
    "require",
    "seal",
    "sealed_files",
    "share",
    "unseal",
]


@dataclass(frozen=True)
class Changed:
    """What sealing or unsealing did: files that were rewritten, and those that were done before."""

    files: int
    before: int


@dataclass(frozen=True)
class File:
    """A file of a vault. `about` is None where only the file itself says what it is."""

    path: Path
    about: About | None
    name: str = ""


# --- sealing -------------------------------------------------------------------------------------


def begin(vault: Vault, custodian: Custodian, url: str) -> Record:
    """Seal whatever is written into a vault from now on; what is there is left to `seal`.

    Args:
        vault: open for writing. custodian: gets the vault's key, if it is sealed by nobody yet.
        url: how that was named.

    Raises:
        SealingError: the custodian fails, or does not hold the key of a vault that is sealed.
    """
    sealing = vault.sealing
    if (record := sealing.record) is not None:
        refuse_rekeying(vault, record)
        sealing.key(record, custodian)
        if record.state == "unsealing":
            record = put_record(vault, replace(record, state="sealing"))
    else:
        key = new_key()
        blank = Record("sealing", vault.identity, key_name(key), (), 0)
        blob = custodian.wrap(key, blank.context)
        record = blank.with_held(custodian.kind, url, blob, time.time())
        if unwrapped(record, custodian, vault.path) != key:
            raise SealingError(f"{url} does not give back what it was given: nothing was sealed")
        sealing.keep(key)
        if vault.remembered:
            # Before: a kill leaves a vault whose custodian is known.
            remember(vault, url, record.key, sealed=False)
        put_record(vault, record)
    if vault.remembered:
        remember(vault, url, record.key, whole=False)  # until `seal` has been through all of it
    return record


def seal(vault: Vault, custodian: Custodian, url: str, progress: Progress = silent) -> Changed:
    """Seal a vault and all that lies in it; goes on where an earlier run was interrupted.

    Raises:
        SealingError: as `begin`; or what is no file of the vault lies in it.
        VaultError: a file is damaged or cannot be read; those before it are sealed, and the vault
            can be used as it is.
    """
    remove_halves(vault)
    check_alone(vault)
    record = begin(vault, custodian, url)
    if record.state == "sealed":  # once more: what was put there meanwhile is sealed, too
        record = put_record(vault, replace(record, state="sealing"))
    key = vault.sealing.key(record)
    files, done, before = list(sealed_files(vault)), 0, 0
    for file in files:
        progress("sealing", done, len(files))
        if content_of(vault, file) is not None:  # it is sealed as what it should be, and opens
            before += 1
        else:
            data = _plain(vault, file)
            about = file.about or vault.sealing.other(_kind(file.path), file.name, data)
            with explained(vault.path, "written"):
                write(vault.path, file.path, seal_file(data, about, key))
        done += 1
    progress("sealing", done, len(files))
    check_alone(vault)
    record = put_record(vault, replace(record, state="sealed"))
    if vault.remembered:
        remember(vault, url, record.key, whole=True)
    return Changed(done - before, before)


def unseal(vault: Vault, custodian: Custodian | None, progress: Progress = silent) -> Changed:
    """Make a sealed vault a plain one; goes on where an earlier run was interrupted.

    Of a plain vault that was sealed here it is forgotten that it was.

    Raises:
        SealingError: no custodian gives the key. VaultError: a file is damaged.
    """
    record, done, before = vault.sealing.record, 0, 0
    if record is not None:
        refuse_rekeying(vault, record)
        remove_halves(vault)
        check_alone(vault)
        vault.sealing.key(record, custodian)
        if vault.remembered:
            leave(vault, record)
        vault.sealing.bind(None)
        if record.state != "unsealing":
            put_record(vault, replace(record, state="unsealing"))
        files = list(sealed_files(vault))
        for file in files:
            progress("unsealing", done, len(files))
            if (content := content_of(vault, file)) is None:
                before += 1
            elif file.about is not None and sha256(content) != file.about.digest:
                raise BrokenSealError(f"{file.path} does not hold what the ledger says")
            else:
                with explained(vault.path, "written"):
                    write(vault.path, file.path, content)
            done += 1
        progress("unsealing", done, len(files))
        with vault._writing():
            drop_record(vault._ledger)
    forget(vault)
    return Changed(done - before, before)


def refuse_rekeying(vault: Vault, record: Record) -> None:
    """Refuse to change how a vault is sealed that is being rekeyed.

    Raises:
        SealingError: it is.
    """
    if record.state == "rekeying":
        raise SealingError(
            f"{vault.path} is being rekeyed: run `g2d vault rekey {vault.path}` to go on"
        )


def put_record(vault: Vault, record: Record) -> Record:
    """Put a record into the ledger, in a commit of its own; return it."""
    with vault._writing():
        write_record(vault._ledger, record)
    vault._checkpoint()
    return record


def sealed_files(vault: Vault) -> Iterator[File]:
    """Every file of a vault that is sealed, if it is."""
    sealing = vault.sealing
    for entry in vault._entries(""):
        for name in entry.files:
            yield File(entry_file(vault.path, entry, name), sealing.entry(entry, name))
    retired = vault.retired
    for made in vault.generations():
        for name, digest in made.files.items():
            path = generation_folder(vault.path, made.number) / f"{name}.safetensors"
            if made.number > retired or os.path.lexists(path):
                yield File(path, sealing.generation(made.number, name, digest))
    for path in other_files(vault.path):
        yield File(path, None, path.name)


def _kind(path: Path) -> str:
    return TEXTS.get(path.name, "network")


def content_of(vault: Vault, file: File) -> bytes | None:
    """What a sealed file of a vault holds; None: it is plain."""
    with explained(vault.path, "read"):
        check_folders(vault.path, file.path)
        return vault.sealing.content(file.path, file.about)


def _plain(vault: Vault, file: File) -> bytes:
    from g2d.core.files import MOST_WEIGHTS, read_plain

    if file.about is not None:
        return read_file(file.path, file.about.digest, "look with `g2d verify` what else is wrong")
    with explained(vault.path, "read"):
        return read_plain(file.path, MOST_WEIGHTS)


# --- a vault beside, and who holds the key -------------------------------------------------------


def share(vault: Vault, beside: Vault) -> None:
    """Seal a vault in which work waits under the key of the vault that it is for.

    Args:
        beside: open for writing.

    Raises:
        SealingError: what waits there was not made for a vault that is sealed so.
    """
    record, there = vault.sealing.record, beside.sealing.record
    if record is not None:
        refuse_rekeying(vault, record)
        record = None if record.state == "unsealing" else record
    if record is None and there is None:
        return
    if there is None and record is not None and not beside.begun() and not beside.entry("records"):
        there = put_record(beside, replace(record, state="sealed"))
    if record is None or there is None or there.key != record.key:
        raise SealingError(
            f"what waits in {beside.path} was begun before {vault.path} was sealed or unsealed:"
            " remove that folder, and begin again"
        )
    beside.sealing.keep(vault.sealing.key(record))
    beside.sealing.bind(there)


def add_custodian(vault: Vault, custodian: Custodian, url: str) -> Record:
    """Give the vault's key to one custodian more.

    Raises:
        SealingError: the vault is not sealed; no custodian that has the key gives it, or the new
            one does not give it back.
    """
    record = require(vault)
    key = vault.sealing.key(record)
    blob = custodian.wrap(key, record.context)
    if custodian.unwrap(blob, record.context) != key:
        raise SealingError(f"{url} does not give back what it was given: it was not added")
    return put_record(vault, record.with_held(custodian.kind, url, blob, time.time()))


def remove_custodian(vault: Vault, number: int) -> Record:
    """Take the vault's key from a custodian; who kept a copy of the ledger and has it still opens.

    Raises:
        SealingError: the vault is not sealed, has no such custodian, or none would be left.
    """
    record = require(vault)
    left = tuple(one for one in record.held if one.number != number)
    if len(left) == len(record.held):
        known = ", ".join(str(one.number) for one in record.held)
        raise SealingError(f"{vault.path} has no custodian {number}; there are: {known}")
    if all(one.kind == RELEASE for one in left):  # a release opens one generation
        raise SealingError(
            f"custodian {number} is the last one: without it nobody opens {vault.path}. Add another"
            " one before"
        )
    return put_record(vault, replace(record, held=left))


def require(vault: Vault) -> Record:
    """How a vault is sealed.

    Raises:
        SealingError: it is not.
    """
    record = vault.sealing.record
    if record is None:
        raise SealingError(
            f"{vault.path} is not sealed: run `g2d vault seal {vault.path} --custodian file:PATH`"
        )
    return record
