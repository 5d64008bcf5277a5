"""A new key for a sealed vault, in place: what was sealed under the old one is sealed anew.

Each file is read, verified and replaced whole, under a data key of its own: who knows the former
vault's key reads nothing that is written from now on. The ledger holds the former key meanwhile,
wrapped by the new one, so that a process which is killed leaves a vault that opens, and the same
command goes on. Knows no torch.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

from g2d.core.platforms import open_plain
from g2d.core.types import Progress, silent
from g2d.errors import BrokenSealError, SealingError
from g2d.vault.ledger import explained, sha256
from g2d.vault.placing import write
from g2d.vault.plain import check_folders
from g2d.vault.sealing.changing import File, content_of, put_record, require, sealed_files
from g2d.vault.sealing.custodian import Custodian
from g2d.vault.sealing.envelope import Head, head_of, key_name, new_key, seal_file, wrap_key
from g2d.vault.sealing.others import check_alone, remove_halves
from g2d.vault.sealing.record import Former, Record
from g2d.vault.sealing.released import RELEASE
from g2d.vault.sealing.remembered import remember, remembered
from g2d.vault.sealing.sealer import unwrapped
from g2d.vault.vault import Vault

__all__ = ["Rekeyed", "rekey"]


@dataclass(frozen=True)
class Rekeyed:
    """What was done: files sealed anew, and before; custodians and releases that hold no more."""

    files: int
    before: int
    custodians: tuple[str, ...] = ()
    releases: int = 0


def rekey(
    vault: Vault, by: Custodian | None, to: Custodian, url: str, progress: Progress = silent
) -> Rekeyed:
    """Draw a new key for a sealed vault and seal all by it; goes on where it was interrupted.

    Args:
        vault: open for writing. by: gives the key that the vault has now; None: the custodian that
            is named on this machine. to: alone holds the new one. url: how that was named.

    Raises:
        SealingError: the vault is not sealed for good; a custodian is not there, or does not give
            back what it was given; or what is no file of the vault lies in it.
        VaultError: a file is damaged or cannot be read or written; the vault can be used as it is.
    """
    record, told = require(vault), Rekeyed(0, 0)
    if record.state not in ("sealed", "rekeying"):
        command = f"g2d vault {record.state.removesuffix('ing')} {vault.path}"
        raise SealingError(f"{vault.path} is only half sealed: run `{command}` before")
    remove_halves(vault)
    check_alone(vault)
    if record.state == "sealed":
        record, told = _begin(vault, record, by, to, url)
    else:
        vault.sealing.key(record, to)
        vault.sealing.former(record)
        _remember(vault, record, url)
    files, done, before = list(sealed_files(vault)), 0, 0
    for file in files:
        progress("rekeying", done, len(files))
        head = _head(vault, file)
        if head.key == record.key:
            before += 1
        else:
            _rewrite(vault, file, head, vault.sealing.key(record))
        done += 1
    progress("rekeying", done, len(files))
    check_alone(vault)
    if vault.remembered:
        # Before: no kill leaves the former key open here, and none is needed any more.
        remember(vault, url, record.key, whole=True)
    put_record(vault, replace(record, state="sealed", former=None))
    return replace(told, files=done - before, before=before)


def _begin(
    vault: Vault, record: Record, by: Custodian | None, to: Custodian, url: str
) -> tuple[Record, Rekeyed]:
    """Have the new key held, and the ledger say so; from now on all is written by it."""
    sealing, key = vault.sealing, new_key()
    old, former = sealing.key(record, by), record.key
    blank = replace(record, state="rekeying", key=key_name(key), held=())
    kept = Former(former, wrap_key(old, key, blank.former_context(former)))
    blob = to.wrap(key, blank.context)
    made = replace(blank, former=kept).with_held(to.kind, url, blob, time.time())
    if unwrapped(made, to, vault.path) != key:
        raise SealingError(f"{url} does not give back what it was given: nothing was rekeyed")
    sealing.keep(key)
    known = remembered(vault)
    if vault.remembered:
        # Before: after a kill the vault is known under either key, by whoever opened it.
        remember(vault, known.custodian, former, sealed=False)
    sealing.bind(None)
    put_record(vault, made)
    _remember(vault, made, url)
    gone = tuple(one.name for one in record.held if one.kind != RELEASE)
    return made, Rekeyed(0, 0, gone, len(record.held) - len(gone))


def _remember(vault: Vault, record: Record, url: str) -> None:
    assert record.former is not None
    if vault.remembered:
        remember(vault, url, record.key, former=record.former.key, whole=True)


def _head(vault: Vault, file: File) -> Head:
    with explained(vault.path, "read"):
        check_folders(vault.path, file.path)
        with os.fdopen(open_plain(file.path), "rb") as opened:
            try:
                return head_of(opened.read)
            except BrokenSealError as error:
                raise BrokenSealError(
                    f"{file.path} cannot be opened: {error}. Restore it from a backup, and go on"
                ) from error


def _rewrite(vault: Vault, file: File, head: Head, key: bytes) -> None:
    content = content_of(vault, file)
    assert content is not None  # it has a head
    if file.about is not None and sha256(content) != file.about.digest:
        raise BrokenSealError(f"{file.path} does not hold what the ledger says")
    with explained(vault.path, "written"):
        write(vault.path, file.path, seal_file(content, file.about or head.about, key))
