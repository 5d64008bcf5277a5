"""Structured log lines: one JSON object each, written so that no reader can hold up the service."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

_WARNINGS = frozenset(
    {
        "alarm", "refused", "failed", "wrong_token", "denied", "exposed", "broken", "observer",
        "crowded", "held_off",
    }
)  # fmt: skip
_WAITING = 10_000  # lines that may wait for a slow reader; more are dropped, and counted
_CLIENTS = frozenset(
    {"wrong_token", "denied", "server", "broken", "observer", "crowded", "held_off"}
)  # lines that any client can cause
_RATE = 5  # of each of those a second


def to_json(value: Any) -> bytes:
    """Write JSON that every reader takes: what is not finite becomes null, no text is an error."""
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    try:
        return orjson.dumps(value, default=str, option=options)
    except TypeError:  # half a surrogate pair, as in a path that is not UTF-8; a huge integer
        return orjson.dumps(_plain(value), default=repr, option=options)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and value.bit_length() > 63:
        return str(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    return value


class Log:
    """Writes one JSON object a line.

    Args:
        out: written at once. None: stderr, from a thread of its own, so that a pipe which nobody
            reads stops no answer.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._writing, self._counting = threading.Lock(), threading.Lock()
        self._lines: queue.Queue[bytes | None] | None = None
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._caused: dict[str, tuple[int, int, int]] = {}
        if out is None:
            self._lines = queue.Queue(_WAITING)
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def __call__(self, event: str, **facts: Any) -> None:
        """Write one line; a log that cannot be written must not stop the service."""
        if event in _CLIENTS:
            suppressed = self._held_back(event)
            if suppressed is None:
                return
            facts |= suppressed
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        level = "warning" if event in _WARNINGS else "info"
        line = to_json({"at": at, "level": level, "event": event, **facts})
        if self._lines is None:
            self._write(line)
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self, seconds: float = 2.0) -> None:
        """Write what waits, for so long at most."""
        if self._lines is None or self._thread is None:
            return
        until = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < until:
            try:
                self._lines.put_nowait(None)
            except queue.Full:
                time.sleep(0.05)
                continue
            self._thread.join(max(0.0, until - time.monotonic()))
            return

    def _held_back(self, event: str) -> dict[str, int] | None:
        """None: too many of these this second. Else what to say of those held back before."""
        second = int(time.monotonic())
        with self._counting:
            since, count, held = self._caused.get(event, (second, 0, 0))
            if since != second:
                since, count = second, 0
            if count >= _RATE:
                self._caused[event] = (since, count, held + 1)
                return None
            self._caused[event] = (since, count + 1, 0)
        return {"held_back": held} if held else {}

    def _run(self) -> None:
        assert self._lines is not None
        take: Callable[[], bytes | None] = self._lines.get
        while (line := take()) is not None:
            self._write(line)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._write(to_json({"level": "warning", "event": "log", "dropped": dropped}))

    def _write(self, line: bytes) -> None:
        try:
            with self._writing:
                self._out.write(line.decode() + "\n")
                self._out.flush()
        except (OSError, ValueError):
            # Its reader has gone, or the stream is closed: there is nowhere left to say so, and a
            # log that cannot be written must not stop the service.
            pass
