"""The folder that clients' keys lie in: this service's alone, and locked for as long as it lives.

An evaluator removes it where the service alone was killed. Where all were (a cgroup, say), nobody
does; so the next service removes what no process holds the lock of. A lock is given up by the
system when its process ends, however it does, and by nothing else.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from g2d.core import platforms
from g2d.core.platforms import FileLock, open_flags
from g2d.errors import G2DError

_PREFIX = "g2d-evaluation-keys-"
_TRIES = 16  # a folder may be taken for a stale one in the moment before it is locked


class Spool:
    """A new folder of mode 700 among the system's temporary ones; those that are stale are removed.

    Attributes:
        path: of the folder.

    Raises:
        G2DError: it cannot be made.
    """

    def __init__(self) -> None:
        self._held: int | None = None
        try:
            self._make(Path(tempfile.gettempdir()))
        except OSError as error:
            why = error.strerror or error
            raise G2DError(
                f"no folder for clients' keys can be made ({why}): name another with $TMPDIR"
            ) from error

    def _make(self, parent: Path) -> None:
        remove_stale(parent)
        for _ in range(_TRIES):
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # mode 700
            if not _locks():
                return
            try:
                self._held = _open(self.path)
            except FileNotFoundError:  # another service has taken it for a stale one already
                continue
            if _lock(self._held) is not False and _is(self.path, self._held):
                return
            os.close(self._held)
            self._held = None
        raise OSError(f"none stays in {parent}: somebody removes them")

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def remove_stale(parent: Path) -> None:
    """Remove folders of keys whose lock nobody holds: ours, plain, of mode 700; leave all others.

    No link is followed and no folder entered: keys are plain files.
    """
    if not _locks():
        return
    with suppress(OSError), os.scandir(parent) as entries:
        for path in [Path(entry.path) for entry in entries if entry.name.startswith(_PREFIX)]:
            with suppress(OSError):
                _remove_stale(path)


def _remove_stale(path: Path) -> None:
    held = _open(path)
    try:
        about = os.fstat(held)
        own = about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) == 0o700
        if not own or _lock(held) is not True or not _is(path, held):
            return
        for name in os.listdir(held):
            os.unlink(name, dir_fd=held)
        path.rmdir()
    finally:
        os.close(held)


def _locks() -> bool:
    """Whether folders can be locked here: not on Windows."""
    return platforms.fcntl is not None and hasattr(os, "O_DIRECTORY")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | open_flags("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"))


def _lock(held: int) -> bool | None:
    """Lock a folder; False: somebody else has; None: its file system has no locks."""
    try:
        FileLock(held, Path())
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _is(path: Path, held: int) -> bool:
    """Whether a folder is still at its path."""
    try:
        there, here = os.lstat(path), os.fstat(held)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
