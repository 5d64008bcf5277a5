"""The log of feedback: inputs with the labels that came for them, bounded, for its owner alone.

It lies in the state folder (`feedback/NAME-DIGEST.jsonl`, mode 600), for it may hold personal data:
the inputs. It holds nothing of who sent them, or what was answered. Lines of JSON, UTF-8:

    {"format": "g2d feedback 1", "shape": [1, 28, 28], "dtype": "float32", "classes": 10}
    {"x": [0.0, 0.5, ..], "y": 3, "at": 1764489600}

`x` is one input's values, row by row; `y` the number of its class; `at` when it came, in whole
seconds since 1970. The first line has no `x`, and a reader passes it; a last line without an end
was cut short, and counts for nothing. `g2d refresh --data FILE` reads it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from g2d.core.files import read_plain, replace_file
from g2d.core.platforms import FileLock, open_flags, private_state
from g2d.core.types import Array
from g2d.errors import G2DError
from g2d.service.http.protocol import Model

FORMAT = "g2d feedback 1"
MOST = 1 << 28
"""Bytes of a log, whatever the number of its rows."""
_EARLIER = 15 / 16  # of its days: rows go a little early, many together
_AHEAD = 86_400  # seconds: rows of a later day came while the clock was wrong, and would stay


def log_path(vault: Path) -> Path:
    """Where the feedback on a vault is kept, by the vault's place; its folder is made.

    Raises:
        G2DError: the folder cannot be made.
    """
    place = vault.absolute().resolve()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", place.name)[:60]
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    try:
        return private_state("feedback") / f"{name}-{digest}.jsonl"
    except OSError as error:
        raise G2DError(
            f"feedback has no place ({error.strerror}): set G2D_STATE to a folder of this user"
        ) from error


class FeedbackLog:
    """Takes labelled inputs, each input once; forgets the oldest, and all after some days.

    Args:
        rows: how many are kept at most. days: for how long at most. now: seconds since 1970.

    Raises:
        G2DError: it cannot be read or written, another service keeps it, or it is no such log.
    """

    def __init__(
        self, path: Path, model: Model, rows: int, days: float,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.path, self._model, self._now = path, model, now
        self._rows, self._days, self._mutex = rows, days, threading.Lock()
        self._known: dict[bytes, int] = {}  # digest of an input: when it came; the oldest first
        self._size, self._lock = 0, self._locked()
        head = {"format": FORMAT, "shape": list(model.shape), "dtype": model.dtype,
                "classes": model.classes}  # fmt: skip
        self._head = orjson.dumps(head) + b"\n"
        with self._mutex:
            self._rewrite(self._rows)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, x: Array, y: Array) -> list[int]:
        """Keep what is new, durably; return which rows of x (n, ...) with classes y (n,) those are.

        Raises:
            G2DError: it cannot be written.
        """
        at, lines, new = int(self._now()), [], dict[bytes, int]()
        with self._mutex:
            if not self.path.exists():  # somebody has deleted it, as he may: a new one is begun
                self._rewrite(self._rows)
            for n, row in enumerate(x):
                key = _digest(row)
                if key in self._known or key in new:
                    continue
                new[key] = n
                said = {"x": row.ravel(), "y": int(y[n]), "at": at}
                lines.append(orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
            kept = lines[-self._rows :]
            # Room is made first: what fails before a row is written has kept and counted none.
            self._make_room(at, len(kept), sum(map(len, kept)))
            if kept:
                self._append(b"".join(kept))
                self._known.update(dict.fromkeys(list(new)[-self._rows :], at))
        return list(new.values())

    def close(self) -> None:
        """Let another service keep it."""
        descriptor, lock = self._lock
        lock.close()
        os.close(descriptor)

    def _locked(self) -> tuple[int, FileLock]:
        path = self.path.with_suffix(".lock")
        flags = os.O_RDWR | os.O_CREAT | open_flags("O_NOFOLLOW", "O_CLOEXEC")
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise _unkept(self.path, error) from error
        try:
            return descriptor, FileLock(descriptor, path)
        except OSError as error:
            os.close(descriptor)
            text = f"another service keeps {self.path}: give feedback to that one"
            raise (
                G2DError(text) if isinstance(error, BlockingIOError) else _unkept(self.path, error)
            ) from error

    def _append(self, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | open_flags("O_NOFOLLOW", "O_CLOEXEC")
        try:
            descriptor = os.open(self.path, flags)
            try:
                before = os.fstat(descriptor).st_size
                try:
                    written = os.write(descriptor, data)
                    if written < len(data):
                        raise OSError(errno.ENOSPC, "the disk is full")
                    os.fsync(descriptor)
                except OSError:
                    # What is cut short must not join the next line: taking away needs no room.
                    os.ftruncate(descriptor, before)
                    raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unkept(self.path, error) from error
        self._size += written

    def _make_room(self, at: int, rows: int, size: int) -> None:
        """Forget so much that so many rows, of so many bytes, have room; and what is too old."""
        # More than must be at once: not every row is to write the whole log anew.
        if len(self._known) + rows > self._rows or self._size + size > MOST:
            most = self._rows if self._size + size <= MOST else len(self._known)
            self._rewrite(min(most * 3 // 4, self._rows - rows))
        elif not at - 86_400 * self._days <= next(iter(self._known.values()), at) <= at + _AHEAD:
            self._rewrite(self._rows, _EARLIER)

    def _rewrite(self, rows: int, days: float = 1.0) -> None:
        """Keep the newest rows that are young enough, and learn what is there.

        Args:
            days: the share of all days that is young enough.
        """
        now = int(self._now())
        since = int(now - 86_400 * self._days * days)
        kept = dict[bytes, tuple[int, bytes]]()
        for line in self._read():
            said = _row(line, self._model)
            if said is not None and since <= said[1] <= now + _AHEAD:
                kept.setdefault(said[0], (said[1], line))
        last = list(kept.items())[-rows:] if rows else []
        data = self._head + b"".join(line + b"\n" for _, (_, line) in last)
        try:
            replace_file(self.path, data, self.path.with_suffix(".new"))
        except OSError as error:
            raise _unkept(self.path, error) from error
        self._known, self._size = {key: at for key, (at, _) in last}, len(data)

    def _read(self) -> list[bytes]:
        """The whole lines of rows that are there; what was cut short is left out."""
        try:
            data = read_plain(self.path, 2 * MOST)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unkept(self.path, error) from error
        head, *lines = data.split(b"\n")
        if head + b"\n" != self._head:
            raise G2DError(
                f"{self.path} is not the feedback on what is served (expected the first line"
                f" {self._head.decode().strip()}): move it away, a new one is begun"
            )
        return lines[:-1]


def _digest(row: Array) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _row(line: bytes, model: Model) -> tuple[bytes, int] | None:
    """A row's digest and its time; None: it is none."""
    try:
        said: Any = orjson.loads(line)
        return _digest(np.array(said["x"], model.dtype)), int(said["at"])
    except (ValueError, KeyError, TypeError):
        return None


def _unkept(path: Path, error: OSError) -> G2DError:
    return G2DError(f"feedback cannot be kept in {path}: {error.strerror}")
