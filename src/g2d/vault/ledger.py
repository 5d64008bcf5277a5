"""What the vault asks of the disk: one writer's lock, the SQLite ledger, files read by digest.

Which entries and generations these hold is decided in `vault`, how files are placed in `placing`. A
connection syncs every commit; a folder that cannot be written can still be read. No link is
followed. What the system refuses becomes one line that says what to do. Knows no torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import sqlite3
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from shutil import disk_usage

from g2d.core.files import fill_file, read_plain, replace_file
from g2d.core.folders import PRIVATE
from g2d.core.platforms import LOCK_FALLBACK, FileLock, open_flags, open_plain, sync_folder
from g2d.errors import UnavailableError, VaultError
from g2d.vault.plain import is_folder, is_open_to_sqlite

FORMAT, SEALED_FORMAT = 1, 2
"""Version of the folder layout and the ledger's tables (`PRAGMA user_version`), and of a vault that
is sealed, or is being."""

_APPLICATION = 0x67326400  # "g2d\0": tells a ledger from any other SQLite file
LEDGER, SETTINGS, TEMP = "ledger.sqlite", "task.toml", ".tmp-"
COMMITMENT = "watermark.json"
"""The file that holds the commitment to a watermark, if there is one."""
SUBFOLDERS = ("early", "population", "generations")
LOCK = "vault.lock"
LEDGERS = tuple(LEDGER + end for end in ("", "-wal", "-shm", "-journal"))
"""What sqlite opens."""
_UNFINISHED = {LOCK, LOCK + LOCK_FALLBACK, SETTINGS, TEMP + SETTINGS, *SUBFOLDERS, *LEDGERS}
_MOST = 1 << 32  # bytes of a file of tensors
_AT_ONCE = 1 << 26  # bytes of a file that is read before its digest is known
_TABLES = (
    "CREATE TABLE entries (kind TEXT, position INTEGER, version INTEGER, files TEXT, info TEXT,"
    " created REAL, PRIMARY KEY (kind, position))",
    "CREATE TABLE generations (number INTEGER PRIMARY KEY, files TEXT, manifest TEXT,"
    " created REAL)",
    "CREATE TABLE exposures (number INTEGER PRIMARY KEY, created REAL)",
    "CREATE TABLE rejections (id INTEGER PRIMARY KEY, info TEXT, created REAL)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {FORMAT}",
)
_IDENTITY = (
    "CREATE TABLE IF NOT EXISTS identity (id TEXT)",
    "INSERT INTO identity SELECT ? WHERE NOT EXISTS (SELECT * FROM identity)",
)
_MARKED = "CREATE TABLE IF NOT EXISTS marked (created REAL, first INTEGER, last INTEGER)"
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})
"""What may be over in a moment, and says nothing about the file."""
_FULL = "the disk is full. Free some space and try again; what was accepted is safe."
_DENIED = "no access, or read-only. Give this user access, or use a copy in a folder of yours."
_CORRUPT = "the ledger is corrupt. Restore the vault from a backup."
_LINKED = "a link, or no plain file or folder, lies there. Look who put it there, and remove it."
_OTHERWISE = "check the disk and try again; what was accepted is safe."
_ADVICE: dict[object, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, f"sqlite {sqlite3.SQLITE_FULL}"), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _DENIED),
    **dict.fromkeys(
        (f"sqlite {sqlite3.SQLITE_READONLY}", f"sqlite {sqlite3.SQLITE_CANTOPEN}"), _DENIED
    ),
    **dict.fromkeys(
        (f"sqlite {sqlite3.SQLITE_CORRUPT}", f"sqlite {sqlite3.SQLITE_NOTADB}"), _CORRUPT
    ),
    **dict.fromkeys((errno.ELOOP, errno.ENOTDIR), _LINKED),
    f"sqlite {sqlite3.SQLITE_BUSY}": "another process holds the ledger. Try again.",
}
_LOCKS: weakref.WeakSet[FileIO] = weakref.WeakSet()


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_file(
    path: Path, digest: str, advice: str, opened: Callable[[Path], bytes | None] | None = None
) -> bytes:
    """Return a file's bytes once their SHA-256 equals `digest`; `advice` is what else to do.

    Args:
        opened: gives the content of one that is sealed, None of one that is not.
    """
    try:
        if opened is not None and (content := opened(path)) is not None:
            return _checked(path, content, digest, advice)
        # A file that somebody made large is hashed in parts before there is room for it.
        data = read_plain(path, _MOST) if path.lstat().st_size <= _AT_ONCE else b""
        if not data and hash_of(path, _MOST) == digest:
            data = read_plain(path, _MOST)
    except FileNotFoundError as error:
        raise VaultError(f"{path} is missing: restore it from a backup, or {advice}.") from error
    except OSError as error:
        kind = UnavailableError if error.errno in PASSING else VaultError
        raise kind(_explain(path, "read", error)) from error
    return _checked(path, data, digest, advice)


def _checked(path: Path, data: bytes, digest: str, advice: str) -> bytes:
    if sha256(data) != digest:
        raise VaultError(
            f"{path} is corrupt (its SHA-256 differs from the ledger's): restore it from a backup,"
            f" or {advice}."
        )
    return data


def hash_of(path: Path, most: int) -> str:
    """Return the SHA-256 of a plain file of at most `most` bytes, without room for all of it."""
    found, handle = hashlib.sha256(), open_plain(path)
    with os.fdopen(handle, "rb", 0) as file:
        if os.fstat(handle).st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, and on the medium, or not at all."""
    replace_file(path, data, path.with_name(TEMP + path.name))


class _LockFile(FileIO):
    """The lock's file; closing it gives up the lock."""

    held: FileLock | None = None

    def close(self) -> None:
        if self.held is not None:
            self.held.close()
        super().close()


def take_lock(path: Path) -> FileIO:
    """Take the writer's lock; a second `Vault` of this process is refused too."""
    flags = os.O_RDWR | os.O_CREAT | open_flags("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK")
    with ExitStack() as undo:
        if not is_open_to_sqlite(path / LOCK):  # said where a system has no O_NOFOLLOW, too
            raise OSError(errno.ELOOP, "it is a link, or no plain file", str(path / LOCK))
        descriptor = os.open(path / LOCK, flags, 0o600)
        file = undo.enter_context(_LockFile(descriptor, "r+"))
        _check_own(path / LOCK, os.fstat(descriptor))  # before its start is written
        try:
            file.held = FileLock(descriptor, path / LOCK)
        except BlockingIOError as error:
            pid = file.read(10).decode(errors="replace").strip() or "unknown"
            raise VaultError(
                f"another g2d process (pid {pid}) is writing {path}: wait for it, or end it."
            ) from error
        file.seek(0)
        file.write(f"{os.getpid():<10}\n".encode())
        undo.pop_all()
    _LOCKS.add(file)
    return file


def _check_own(path: Path, about: os.stat_result) -> None:
    """Refuse to write into a file that has another name elsewhere, or is none."""
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.ELOOP, "it is no plain file", str(path))
    if about.st_nlink > 1:
        raise OSError(errno.ELOOP, "it is a file with a second name elsewhere", str(path))


def _release_in_child() -> None:
    for file in list(_LOCKS):  # a forked worker that outlives us must not keep the lock
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


class NewerFormatError(VaultError):
    """The vault is of a format that only a newer g2d reads; nothing is wrong with it."""


class Frozen(sqlite3.Connection):
    """A connection to a ledger that sqlite may neither lock nor share memory over."""


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open the ledger with sqlite's `mode`: rwc, rw, ro, or ro&immutable=1 (frozen)."""
    for name in LEDGERS:  # sqlite follows links and waits for pipes
        if not is_open_to_sqlite(path / name):
            raise OSError(errno.ELOOP, "it is a link, or no plain file", str(path / name))
        if mode in ("rw", "rwc") and os.path.lexists(path / name):
            with suppress(FileNotFoundError):  # a reader made it, and it has gone since
                _check_own(path / name, os.lstat(path / name))
    if mode == "rwc" and not os.path.lexists(path / LEDGER):
        fill_file(path / LEDGER, b"", 0o600)  # what lies beside it gets its permissions
    uri, kind = (path / LEDGER).as_uri(), Frozen if "immutable" in mode else sqlite3.Connection
    ledger = sqlite3.connect(
        f"{uri}?mode={mode}", 10, 0, None, check_same_thread=False, factory=kind, uri=True
    )
    try:
        ledger.execute("PRAGMA synchronous = FULL")
        ledger.execute("PRAGMA cache_size = -256")  # KiB: a long life's ledger must not fill memory
        ledger.execute("SELECT count(*) FROM sqlite_master")  # opens the files, replays the log
    except BaseException:
        ledger.close()
        raise
    return ledger


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open the ledger for reading, frozen where sqlite cannot make the files it needs."""
    try:
        return connect(path, "ro")
    except sqlite3.OperationalError:  # a WAL ledger needs a -shm file, and it cannot be made here
        log = path / f"{LEDGER}-wal"
        if log.exists() and log.stat().st_size:
            raise
        return connect(path, "ro&immutable=1")


def is_vacant(path: Path) -> bool:
    """Whether a folder is empty, or holds only what a killed `create` may have left."""
    inside = {item.name for item in path.iterdir()} if path.is_dir() else {"a file"}
    deeper = any(
        not is_folder(path / name) or any((path / name).iterdir())
        for name in inside.intersection(SUBFOLDERS)
    )
    return not inside or (LOCK in inside and inside <= _UNFINISHED and not deeper)


def make_ledger(path: Path, settings_toml: str) -> sqlite3.Connection:
    """Write everything else first: the vault exists once the ledger's tables are committed."""
    ledger = connect(path, "rwc")
    try:
        if ledger.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise VaultError(f"{path} is a vault already. Open it, or name another folder.")
        for folder in SUBFOLDERS:
            (path / folder).mkdir(PRIVATE, exist_ok=True)
        write_file(path / SETTINGS, settings_toml.encode())
        ledger.execute("PRAGMA journal_mode = WAL")
        ledger.execute("BEGIN IMMEDIATE")
        for statement in _TABLES:
            ledger.execute(statement)
        _add_identity(ledger)
        ledger.execute("COMMIT")
        sync_folder(path.parent)
    except BaseException:
        ledger.close()
        raise
    return ledger


def give_identity(ledger: sqlite3.Connection) -> None:
    """Draw the id of a vault that was made before vaults had one."""
    if not ledger.execute("SELECT 1 FROM sqlite_master WHERE name = 'identity'").fetchall():
        ledger.execute("BEGIN IMMEDIATE")
        _add_identity(ledger)
        ledger.execute("COMMIT")


def note_mark(ledger: sqlite3.Connection, first: int, last: int) -> None:
    """Note that there is a mark outside; and, once, numbers `first` to `last` that were given up.

    They had been issued when an older copy of the vault was accepted, and are not issued again.
    """
    known = ledger.execute("SELECT 1 FROM sqlite_master WHERE name = 'marked'").fetchall()
    gap = first <= last
    if known and gap:
        gap = not ledger.execute("SELECT 1 FROM marked WHERE last >= ?", (last,)).fetchall()
    if known and not gap:
        return
    ledger.execute("BEGIN IMMEDIATE")
    ledger.execute(_MARKED)
    if gap:
        ledger.execute("INSERT INTO marked VALUES (?, ?, ?)", (time.time(), first, last))
    ledger.execute("COMMIT")


def _add_identity(ledger: sqlite3.Connection) -> None:
    make, fill = _IDENTITY
    ledger.execute(make)
    ledger.execute(fill, (secrets.token_hex(16),))


def check_ledger(path: Path, ledger: sqlite3.Connection) -> None:
    """Raise a `VaultError` unless the ledger is ours, whole and of a format that we read."""
    application = ledger.execute("PRAGMA application_id").fetchone()[0]
    version = ledger.execute("PRAGMA user_version").fetchone()[0]
    if application != _APPLICATION:
        raise VaultError(
            f"{path} is not a vault: its {LEDGER} is empty or another program's. If creating it"
            " was interrupted, create it again; otherwise check the path or restore a backup."
        )
    if version > SEALED_FORMAT:
        raise NewerFormatError(
            f"{path} has vault format {version}, and this g2d reads format {FORMAT}, and"
            f" {SEALED_FORMAT} where it is sealed: upgrade g2d (pip install --upgrade g2d)."
        )
    verdict = ledger.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise VaultError(f"{path}: {_CORRUPT} ({verdict.splitlines()[-1]})")


@contextmanager
def explained(path: Path, action: str) -> Iterator[None]:
    """Turn whatever the disk or sqlite refuses in the block into one `VaultError`."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise VaultError(_explain(path, action, error)) from error


def _explain(path: Path, action: str, error: OSError | sqlite3.Error) -> str:
    """Say in one line what the system refused and what to do about it."""
    code: object = error.errno if isinstance(error, OSError) else None
    if isinstance(error, sqlite3.Error):
        primary = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        code = f"sqlite {primary}"
        if primary == sqlite3.SQLITE_IOERR and path.is_dir() and disk_usage(path).free < 1 << 16:
            code = errno.ENOSPC  # what sqlite says when its -shm file does not fit
    cause = " ".join(str(error).split())
    return f"{path} cannot be {action} ({cause}): {_ADVICE.get(code, _OTHERWISE)}"
