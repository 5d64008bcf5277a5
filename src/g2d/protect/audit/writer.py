"""Writes an audit log: appends records, signs checkpoints, takes up a log after a crash.

Nothing that was written is ever changed. Not for several threads; `log` has one of its own.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2d.core.platforms import FileLock, open_flags, open_plain, sync_folder
from g2d.errors import G2DError
from g2d.protect.audit.places import (
    Anchor,
    check_private,
    next_segment,
    read_anchor,
    segments,
    write_anchor,
)
from g2d.protect.audit.records import (
    CHECKPOINT,
    CLOSE,
    INTERVAL,
    LONGEST,
    OPEN,
    RECOVERED,
    START,
    SUSPECT,
    Head,
    Record,
    digest,
    sign_checkpoint,
    stamp,
)
from g2d.vault.keys import SigningKey

SEGMENT = 8 << 20
"""Bytes after which the file in use takes a number, and the next one is begun."""
_BEGIN = b'{"facts":'  # of every line
_TAIL = 4 << 20  # bytes from the end in which the last record, and the anchor's, are looked for

Entry = tuple[int, str, Mapping[str, Any]]
"""When (nanoseconds since 1970), what, and its facts."""


@dataclass
class _Tail:
    """How a log ends: its last record's head, records since a checkpoint, and what is torn."""

    head: Head
    log: str
    unsigned: int
    torn: bytes
    complete: bool
    """Whether the last record lacks nothing but the end of its line."""


class Writer:
    """An open audit log.

    Args:
        path: the file in use; full ones lie beside it. key: signs checkpoints. anchor: the file
            that remembers the last one. size: bytes of a file.

    Attributes:
        head: of the last record. found: of the last one that was there at the last `open`.
        log: the log's identity. unsigned: records since a checkpoint. suspect: why the log is not
            what was left here, "" if nothing is known against it.

    Raises:
        G2DError: it cannot be opened, others may read it, or another service writes to it.
    """

    def __init__(self, path: Path, key: SigningKey, anchor: Path, size: int = SEGMENT) -> None:
        self.path, self._key, self._anchor, self._size = path, key, anchor, size
        self._handle = -1
        flags = os.O_RDWR | os.O_CREAT | open_flags("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK")
        lock = path.with_name(f".{path.name}.lock")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._guard = os.open(lock, flags, 0o600)
            try:
                self._lock = FileLock(self._guard, lock)
                self.open()
            except BaseException:
                self.release()
                raise
        except BlockingIOError as error:
            raise LockedError(
                f"another service writes to the audit log {path}: name another file with --audit"
            ) from error
        except OSError as error:
            raise G2DError(
                f"cannot open the audit log {path}: {error.strerror or error}; name another file"
                " with --audit, or none with --audit none"
            ) from error

    def open(self) -> None:
        """Take the log up where it ends, also after a write that failed; begin one if none is.

        Raises:
            OSError: it cannot be read or written. G2DError: it is no audit log.
        """
        self._shut()
        before = segments(self.path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        more = open_flags("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK")
        self._handle = os.open(self.path, flags | more, 0o600)
        check_private(self._handle, self.path)
        if not before:
            sync_folder(self.path.parent)
        tail = _tail([path for path in before if path.stat().st_size])
        self.log, self.unsigned = tail.log, tail.unsigned
        self.head = self.found = tail.head
        if tail.complete or tail.torn:
            self._write(b"\n")
        torn = {"bytes": len(tail.torn), "sha256": digest(tail.torn)} if tail.torn else {}
        if self.head == START:
            from g2d import __version__

            self.log = secrets.token_hex(16)
            facts = {"log": self.log, "g2d": __version__, "key": self._key.fingerprint, **torn}
            self._put([(OPEN, stamp(), facts)])
        elif torn:
            self._put([(RECOVERED, stamp(), torn)])
        self.suspect = self._against_anchor(tail.head)
        if self.suspect:
            self._put([(SUSPECT, stamp(), {"text": self.suspect})])
        self.checkpoint()  # the anchor must not say any more that the log is closed

    def append(self, entries: Sequence[Entry]) -> None:
        """Write records, those that fill the interval with a checkpoint; then onto the medium.

        At most as many as are left of an interval: see `room`.

        Raises:
            OSError: some may not be written; `open` finds out which, by `head`.
        """
        assert len(entries) <= self.room
        self._put([(name, stamp(at), facts) for at, name, facts in entries])
        if self.unsigned >= INTERVAL - 1:
            self.checkpoint()

    @property
    def room(self) -> int:
        """How many records may follow before a checkpoint must."""
        return INTERVAL - 1 - self.unsigned

    def checkpoint(self, closed: bool = False) -> None:
        """Sign what is written, if anything is new, and remember it outside of the log.

        Raises:
            OSError: as `append`.
        """
        if closed:
            self._put([(CLOSE, stamp(), {})])
        if self.unsigned:
            at = stamp()
            self._put([(CHECKPOINT, at, sign_checkpoint(self._key, self.log, self.head, at))])
            self.unsigned = 0
        write_anchor(self._anchor, Anchor(self.log, self.head.sequence, self.head.digest, closed))

    def release(self) -> None:
        """Close the files, whatever is signed."""
        self._shut()
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1
            if hasattr(self, "_lock"):
                self._lock.close()

    def turn(self) -> None:
        """Begin the next file, if the one in use is full; it ends with a checkpoint.

        Raises:
            OSError: as `append`.
        """
        if os.fstat(self._handle).st_size < self._size:
            return
        self.checkpoint()
        self._shut()
        self.path.rename(next_segment(self.path))
        sync_folder(self.path.parent)
        self.open()

    def _put(self, said: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
        lines, head = [], self.head
        for name, at, facts in said:
            record = Record(head.sequence + 1, at, head.digest, name, facts)
            line = record.line()
            assert len(line) <= LONGEST
            lines.append(line + b"\n")
            head = record.head(line)
        self._write(b"".join(lines))
        self.head, self.unsigned = head, self.unsigned + len(said)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._handle, data) :]
        os.fsync(self._handle)

    def _shut(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)

    def _against_anchor(self, found: Head) -> str:
        """Why the log cannot be the one whose last checkpoint was remembered; "" if it can."""
        try:
            anchor = read_anchor(self._anchor)
        except G2DError as error:
            return str(error)
        if anchor is None:
            return ""
        text, there = "", _find(segments(self.path), anchor.sequence)
        if anchor.log != self.log:
            text = (
                f"it is not the log {anchor.log} that was here before (if you moved that one away,"
                f" {self._anchor} should have gone with it)"
            )
        elif anchor.sequence > found.sequence:
            text = (
                f"it ended at record {found.sequence}, and record {anchor.sequence} was signed: it"
                " was cut"
            )
        elif anchor.closed and found != anchor.at:
            text = f"it was closed with record {anchor.sequence}, and has changed since"
        elif there is not None and there != anchor.at:
            text = f"record {anchor.sequence} is not the one that was signed"
        return text


class LockedError(G2DError):
    """Another service writes to the log."""


def _read_end(path: Path) -> bytes:
    """The last bytes of a file, from the beginning of a line on."""
    handle = open_plain(path)
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(handle).st_size
        file.seek(max(0, size - _TAIL))
        data = file.read(_TAIL)
    return data if size <= _TAIL else data.partition(b"\n")[2]


def _parsed(line: bytes) -> Record | None:
    try:
        return Record.parse(line)
    except ValueError:
        return None


def _tail(files: Sequence[Path]) -> _Tail:
    """Find how a log ends, in the last two of its files; a full one ends with a checkpoint."""
    if not files:
        return _Tail(START, "", 0, b"", False)
    *lines, rest = b"".join(map(_read_end, files[-2:])).split(b"\n")
    torn = [rest] if rest else []
    unsigned, last, log = 0, None, ""
    for line in reversed(lines):
        record = _parsed(line)
        if record is None and last is None:
            torn.insert(0, line)
            continue
        if record is None:
            break
        last = last or record.head(line)
        if record.name in (OPEN, CHECKPOINT):
            log, unsigned = str(record.facts.get("log")), unsigned + (record.name == OPEN)
            break
        unsigned += 1
    if last is None and len(torn) == 1 and rest and _BEGIN.startswith(rest[: len(_BEGIN)]):
        return _Tail(START, "", 0, rest, False)  # not even the first record was written
    if last is None or not log:
        raise OSError(errno.EINVAL, "it does not end as an audit log does: move it away")
    whole = _parsed(rest) if len(torn) == 1 and rest else None
    if whole and (whole.sequence, whole.previous) == (last.sequence + 1, last.digest):
        unsigned = 0 if whole.name == CHECKPOINT else unsigned + 1
        return _Tail(whole.head(rest), log, unsigned, b"", True)
    return _Tail(last, log, unsigned, b"\n".join(torn), False)


def _find(files: Sequence[Path], sequence: int) -> Head | None:
    """The head of a record near the end of a log; None: it is not there."""
    for path in reversed(files[-2:]):
        for line in reversed(_read_end(path).split(b"\n")):
            record = _parsed(line) if b'"seq":%d,' % sequence in line else None
            if record and record.sequence == sequence:
                return record.head(line)
    return None
