"""How a vault's files get into their places, and out of them; no link is followed on the way.

Which files there are to be is decided in `vault`. Knows no torch.
"""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from g2d.core.folders import Folder
from g2d.core.platforms import others_may_read
from g2d.errors import VaultError
from g2d.vault.ledger import LEDGERS, LOCK, SETTINGS, SUBFOLDERS, TEMP
from g2d.vault.records import OURS, generation_folder

__all__ = ["check_private", "place", "remove_weights", "tidy", "write"]

_NUMBERED = re.compile(r"\d{6,}")


def check_private(root: Path) -> None:
    """Refuse a vault that others than its owner may look into, or write: its weights are secret.

    Raises:
        VaultError: with the command that closes it.
    """
    root = root.resolve()  # the user may have named it by a link
    for path in (root, *(root / name for name in (*SUBFOLDERS, *LEDGERS, SETTINGS, LOCK))):
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if others_may_read(mode) and not stat.S_ISLNK(mode):  # a link is refused by who opens it
            raise VaultError(
                f"other users may read or write {path} (mode {mode & 0o7777:o}), and a vault holds"
                " weights that are not live yet, with attacks on them: run"
                f" `chmod -R go-rwx {shlex.quote(str(root))}`"
            )


def write(root: Path, path: Path, data: bytes) -> None:
    """Write a file of the vault so that it is there whole, and on the medium, or not at all."""
    with ExitStack() as stack:
        folder = stack.enter_context(Folder(root))
        for name in path.relative_to(root).parts[:-1]:
            folder = stack.enter_context(Folder(folder.path / name, folder))
        _replace(folder, path.name, data)


def _replace(folder: Folder, name: str, data: bytes) -> None:
    folder.remove(TEMP + name)  # what a kill left, or a link that somebody put there
    try:
        folder.fill(TEMP + name, data)
        folder.rename(TEMP + name, name)
    except BaseException:
        with suppress(OSError, VaultError):  # on a full disk it would keep its room
            folder.remove(TEMP + name)
        raise
    folder.sync()


def place(root: Path, number: int, contents: Mapping[str, bytes]) -> None:
    """Put a generation's files into its folder, whole or not at all; what lay there goes."""
    target = generation_folder(root, number)
    with Folder(root) as top, Folder(target.parent, top, make=True) as generations:
        for leftover in (TEMP + target.name, target.name):  # no row: `number` is not issued yet
            generations.remove(leftover)
        with Folder(target.with_name(TEMP + target.name), generations, make=True) as staged:
            for name, data in contents.items():
                staged.fill(name, data)
            staged.sync()
        generations.rename(TEMP + target.name, target.name)
        generations.sync()


def tidy(root: Path, known: Collection[Path], issued: int, entries: bool) -> None:
    """Make the folders; remove temporary files and whatever of ours has no row.

    Args:
        known: what has one. issued: the highest number that was ever given out, by the mark:
            folders up to it are no leftovers, whatever the ledger says. entries: whether files of
            entries without a row are leftovers.
    """
    with Folder(root) as top:
        for name in ("", *SUBFOLDERS):
            if name:
                with Folder(root / name, top, make=True) as folder:
                    _tidy(folder, known, issued, entries)
            else:
                _tidy(top, known, issued, entries)
        top.sync()


def _tidy(folder: Folder, known: Collection[Path], issued: int, entries: bool) -> None:
    generations = folder.path.name == "generations"
    for name in folder.names():
        ours = (_NUMBERED if generations else OURS).fullmatch(name)
        wanted = len(name) < 18 and int(name) > issued if ours and generations else entries
        if name.startswith(TEMP) or (ours and wanted and folder.path / name not in known):
            folder.remove(name)


def remove_weights(root: Path, numbers: Collection[int], kept: Collection[str]) -> None:
    """Remove what generations' folders hold, but for the names `kept`; those that are not there
    are no error."""
    with Folder(root) as top, Folder(root / "generations", top) as generations:
        for number in numbers:
            path = generation_folder(root, number)
            if not generations.has(path.name):
                continue
            with Folder(path, generations) as folder:
                for name in folder.names():
                    if name not in kept:
                        folder.remove(name)
