"""What macOS or Windows does not have, behind one function each; nothing else asks for a system.

Everything here looks for what it needs when it is called, never for a system's name alone, so that
a test can take it away. G2D is developed on Linux; docs/models.md says what differs elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import select
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO

fcntl: ModuleType | None
resource: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import resource
except ImportError:  # Windows
    resource = None

LOCK_FALLBACK = ".sqlite"
"""What a lock file's name ends in besides, where sqlite locks it."""


def cores() -> int:
    """How many cores this process may use; on macOS and Windows, how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def trim_memory() -> bool:
    """Give freed memory back to the system; whether its allocator (glibc's) has to be told to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
    return trim is not None


def user() -> int | None:
    """This user's number; None where users have none."""
    return os.getuid() if hasattr(os, "getuid") else None


def state_folder() -> Path:
    """Where G2D keeps what must not lie in a vault: $G2D_STATE, or the user's folder for state.

    That is $XDG_STATE_HOME/g2d, %LOCALAPPDATA%\\g2d\\state where there is such a variable, else
    ~/.local/state/g2d. It is not made.

    Raises:
        OSError: none of them is set, and the user has no home.
    """
    if given := os.environ.get("G2D_STATE"):
        return Path(given).absolute()
    for name, rest in (("XDG_STATE_HOME", "g2d"), ("LOCALAPPDATA", "g2d/state")):
        if (home := os.environ.get(name)) and Path(home).is_absolute():
            return Path(home) / rest
    try:
        return Path.home() / ".local" / "state" / "g2d"
    except RuntimeError as error:
        raise OSError(errno.ENOENT, f"this user has no home ({error})") from error


def private_state(*parts: str) -> Path:
    """Make a folder in the state folder, each closed to others whatever the umask; return it.

    Raises:
        OSError: it cannot be made.
    """
    folder = state_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    for name in ("", *parts):
        folder = folder / name
        folder.mkdir(0o700, exist_ok=True)
    return folder


def others_may_read(mode: int) -> bool:
    """Whether a file's permissions let others in; on Windows they say nothing of that."""
    return user() is not None and bool(mode & 0o077)


def open_flags(*names: str) -> int:
    """Those of the flags of `os.open` that this system knows; always in binary."""
    return sum(getattr(os, name, 0) for name in (*names, "O_BINARY"))


def open_plain(path: Path, follow: bool = False) -> int:
    """Open a plain file to read and return its descriptor; nothing that would block is opened.

    Args:
        follow: a link to one will do.

    Raises:
        OSError: it cannot be opened, is a link (`ELOOP`), or is no plain file (`EINVAL`).
    """
    flagged = hasattr(os, "O_NONBLOCK") and hasattr(os, "O_NOFOLLOW")
    here = None if flagged else path.stat() if follow else path.lstat()
    if here is not None:  # else the flags below say it, with no moment between
        _check_plain(here, path)
    link = () if follow else ("O_NOFOLLOW",)
    handle = os.open(path, os.O_RDONLY | open_flags("O_NONBLOCK", "O_CLOEXEC", *link))
    try:
        about = os.fstat(handle)
        _check_plain(about, path)
        if here is not None and not os.path.samestat(here, about):
            raise OSError(errno.EAGAIN, "it was changed while it was opened", str(path))
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_plain(about: os.stat_result, path: Path) -> None:
    if stat.S_ISLNK(about.st_mode):
        raise OSError(errno.ELOOP, "it is a link", str(path))
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))


def take_place(staged: Path, path: Path) -> None:
    """Rename a file onto another, which Windows does under another name."""
    try:
        staged.rename(path)
    except FileExistsError:
        staged.replace(path)


def sync_folder(folder: Path) -> None:
    """Put a folder's own entries onto the medium; Windows opens no folders, and journals them."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | open_flags("O_DIRECTORY"))
    except PermissionError:
        if os.name == "nt":
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileLock:
    """An exclusive lock on an open file, held until it is closed or its process ends, even killed.

    By `flock`, so that a second holder in this process is refused too; without it by sqlite, which
    locks an empty database beside the file on every system, and refuses a second holder as well.

    Raises:
        BlockingIOError: somebody else holds it.
        OSError: it cannot be made.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._database: sqlite3.Connection | None = None
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        self._database = sqlite3.connect(
            path.with_name(path.name + LOCK_FALLBACK), timeout=0.0, check_same_thread=False
        )
        try:
            self._database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._database.close()
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise BlockingIOError(errno.EAGAIN, "it is locked", str(path)) from error
            raise OSError(errno.EACCES, f"it cannot be locked ({error})", str(path)) from error

    def close(self) -> None:
        """Give up what is not given up with the file's descriptor."""
        if self._database is not None:
            self._database.close()


@contextmanager
def held(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file of its own (mode 600), made where it is missing; it stays there.

    Args:
        patience: seconds to wait for somebody else who holds it.

    Raises:
        BlockingIOError: somebody else still holds it.
        OSError: it cannot be made, or is a link.
    """
    flags = os.O_RDWR | os.O_CREAT | open_flags("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK")
    descriptor, until = os.open(path, flags, 0o600), time.monotonic() + patience
    try:
        lock: FileLock | None = None
        while lock is None:
            try:
                lock = FileLock(descriptor, path)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.005)
        try:
            yield
        finally:
            lock.close()
    finally:
        os.close(descriptor)


class Lines:
    """Lines of a process's output that can be awaited for a time; `read` then gives one at once.

    Where there is no `select.poll` (Windows), a thread reads ahead. Not `select`: it takes no
    descriptor above 1023, and a service may hold thousands; on Windows it takes no pipe at all.

    Attributes:
        stream: that output, without a buffer.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self._read = stream, queue.SimpleQueue[bytes]()
        self._next: bytes | None = None
        self._threaded = not hasattr(select, "poll")
        if self._threaded:
            threading.Thread(target=self._read_ahead, daemon=True).start()

    def ready(self, seconds: float) -> bool:
        """Wait until there is a line, or the end; False if the time was too short."""
        if not self._threaded:
            poll = select.poll()
            poll.register(self.stream, select.POLLIN)
            return bool(poll.poll(1e3 * seconds))
        if self._next is None:
            try:
                self._next = self._read.get(timeout=seconds)
            except queue.Empty:
                return False
        return True

    def read(self) -> bytes:
        """Return the next line, with its end; b"" once there is none to come."""
        if not self._threaded:
            return self.stream.readline()
        line, self._next = self._next if self._next is not None else self._read.get(), None
        return line

    def _read_ahead(self) -> None:
        try:
            for line in iter(self.stream.readline, b""):
                self._read.put(line)
        except (OSError, ValueError):
            pass  # the pipe was closed: its end is told below, as of one that ended
        self._read.put(b"")
