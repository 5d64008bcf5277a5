"""A folder that is worked in by its descriptor: whatever is put in its place, no link is followed.

Where a system opens no folders (Windows), each step looks first. Reading is in `files`.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from g2d.core.files import fill_file
from g2d.core.platforms import open_flags, sync_folder, take_place

PRIVATE = 0o700
"""What may be done in a folder of ours: anything, by its owner alone."""


class Folder:
    """A folder held open, in which names are made, renamed and removed. A context manager.

    Args:
        path: the folder. inside: the folder that it lies in; then it may not be a link, which the
            one that a user named may be. make: make it, if it is not there, for its owner alone.

    Raises:
        OSError: it is not there, or is a link or a file (`ELOOP`, `ENOTDIR`).
    """

    def __init__(self, path: Path, inside: Folder | None = None, make: bool = False) -> None:
        self.path, self._handle = path, -1
        if make:
            with suppress(FileExistsError):
                inside._in(os.mkdir, path.name, PRIVATE) if inside else path.mkdir(PRIVATE)
        if not _by_handle():
            if inside and not stat.S_ISDIR(path.lstat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "it is a link or a file", str(path))
            return
        flags = os.O_RDONLY | open_flags("O_DIRECTORY", "O_CLOEXEC")
        if inside is None:
            self._handle = os.open(path, flags)
        else:
            flags |= open_flags("O_NOFOLLOW")
            try:
                self._handle = os.open(path.name, flags, dir_fd=inside._handle)
            except OSError as error:
                raise type(error)(error.errno, error.strerror, str(path)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def names(self) -> list[str]:
        """What lies in it."""
        return os.listdir(self._handle if self._handle >= 0 else self.path)

    def has(self, name: str) -> bool:
        """Whether a name is taken in it, by whatever it is."""
        try:
            self._in(os.lstat, name)
        except FileNotFoundError:
            return False
        return True

    def fill(self, name: str, data: bytes) -> None:
        """Write a new file for its owner alone, onto the medium."""
        if self._handle >= 0:
            fill_file(name, data, 0o600, self._handle)
        else:
            fill_file(self.path / name, data, 0o600)

    def rename(self, old: str, new: str) -> None:
        """Give a file or a folder another name."""
        if self._handle >= 0:
            os.rename(old, new, src_dir_fd=self._handle, dst_dir_fd=self._handle)
        else:
            take_place(self.path / old, self.path / new)

    def remove(self, name: str) -> None:
        """Remove whatever has a name: a folder with all that is in it, of a link the link alone."""
        try:
            self._in(os.unlink, name)
        except FileNotFoundError:
            return
        except OSError as error:  # Linux says EISDIR of a folder, others EPERM
            if error.errno not in (errno.EISDIR, errno.EPERM, errno.EACCES):
                raise
            if not stat.S_ISDIR(self._in(os.lstat, name).st_mode):
                raise
            if self._handle >= 0:
                shutil.rmtree(name, dir_fd=self._handle)
            else:
                shutil.rmtree(self.path / name)

    def sync(self) -> None:
        """Put its entries onto the medium."""
        if self._handle >= 0:
            os.fsync(self._handle)
        else:
            sync_folder(self.path)

    def _in(self, call: Any, name: str, *more: Any) -> Any:
        """Call a function of `os` on a name in this folder."""
        if self._handle >= 0:
            return call(name, *more, dir_fd=self._handle)
        return call(self.path / name, *more)


def _by_handle() -> bool:
    """Whether this system works in folders by their descriptors."""
    calls = {os.open, os.unlink, os.mkdir, os.rename, os.stat}
    return hasattr(os, "O_DIRECTORY") and calls <= os.supports_dir_fd
