"""A folder inside a vault where work waits until the vault takes it over, whole.

A refresh has one, and a basin that is grown: a vault of its own, sealed as the one that it lies in,
held against a second process that does the same work. A run that was killed goes on in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from g2d.errors import VaultError
from g2d.vault.ledger import is_vacant
from g2d.vault.plain import is_folder
from g2d.vault.sealing.changing import share
from g2d.vault.vault import Vault


class Staging(Vault):
    """Where work waits: what it reaches is marked nowhere, and it goes once it is moved."""

    remembered = False


def in_use(error: VaultError) -> bool:
    """Whether a vault could not be opened for another process is writing it."""
    return isinstance(error.__cause__, BlockingIOError)


def folder_in(vault: Vault, name: str, of: str) -> Path:
    """The folder of that name in a vault; `of` says in words what waits there.

    Raises:
        VaultError: a link, or a file, lies there.
    """
    path = vault.path / name
    if os.path.lexists(path) and not is_folder(path):
        raise VaultError(
            f"{path} is a link or a file, expected the folder of {of}: look who put it there,"
            " and remove it"
        )
    return path


@contextmanager
def staging(
    vault: Vault, path: Path, goes_on: Callable[[Vault], bool], *, anew: bool, busy: str, left: str
) -> Iterator[Vault]:
    """Open the folder where work waits, or make it; it is held against a second process.

    Args:
        goes_on: whether what waits is still wanted; else it is dropped, and begun anew. anew: drop
            what cannot be opened, too. busy: says that another process does this work. left: names
            what an earlier run has left.

    Raises:
        VaultError: another process is at it, or what was left cannot be used.
    """
    staged = _waiting(path, anew, busy, left)
    if staged is not None:
        try:
            wanted = goes_on(staged)
        except BaseException:
            staged.close()
            raise
        if not wanted:
            staged.close()
            staged = None
    if staged is None:
        if path.exists():
            shutil.rmtree(path)
        staged = Staging.create(path, vault.settings_text)
    with staged:
        share(vault, staged)
        yield staged


def _waiting(path: Path, anew: bool, busy: str, left: str) -> Vault | None:
    """Open what an earlier run has left, if that was more than a kill leaves of an empty folder."""
    if not (path / "ledger.sqlite").exists():
        return None  # or of one that was being removed
    try:
        return Staging.open(path, write=True)
    except VaultError as error:
        if in_use(error):
            raise VaultError(f"{busy} ({error}); wait for it, or end it") from error
        if anew or is_vacant(path):
            return None
        raise VaultError(f"{left} has left cannot be used ({error}); --anew drops it") from error
