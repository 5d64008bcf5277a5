"""The audit log as a sink for events: it takes them from any thread, and never waits.

A thread of its own writes them. What waits is bounded; what is lost to a full queue, or to a disk
that takes nothing, is counted, told as an alarm, and said in the log itself once it goes on.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from g2d.errors import G2DError
from g2d.protect.audit.places import anchor_file, audit_key, default_log
from g2d.protect.audit.records import GAP, HELD, INTERVAL, Head, bounded, stamp
from g2d.protect.audit.writer import SEGMENT, Entry, LockedError, Writer
from g2d.rotation.events import Alarm, Event, Tell, silent
from g2d.vault.keys import SigningKey

WAITING = 10_000
"""Events that may wait to be written; more are dropped, and counted."""
SIGNED = 5.0
"""Seconds after which what is written and unsigned gets a checkpoint."""
_RATE = 5  # events of a kind that any client can cause, in a second; the rest are counted
_AGAIN = 1.0  # seconds before a disk that took nothing is tried again
_OTHERS = 8  # services of one vault at once that have a log each


class AuditLog:
    """Takes every event, once, from any thread; `connect` says where its own alarms go.

    Args:
        writer: an open log, which this one closes. signed: see `SIGNED`. waiting: see `WAITING`.
    """

    def __init__(self, writer: Writer, signed: float = SIGNED, waiting: int = WAITING) -> None:
        self._writer, self._signed = writer, signed
        self._queue: queue.Queue[Entry | None] = queue.Queue(waiting)
        self._counting = threading.Lock()
        self._dropped, self._overflowing = 0, False
        self._held: dict[tuple[str, str, str], tuple[int, int, int]] = {}
        self._tell: Tell = silent
        self._count: Callable[[int], None] = lambda _: None
        self._note: Callable[[Head], None] = lambda _: None
        self._batch: list[Entry] = []
        self._since, self._failing = time.monotonic(), False
        self._base = self._tried = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self._writer.path

    def connect(
        self, tell: Tell, dropped: Callable[[int], None], note: Callable[[Head], None]
    ) -> None:
        """Say who hears its alarms, who counts what was dropped, and who notes heads elsewhere."""
        self._tell, self._count, self._note = tell, dropped, note
        if self._writer.suspect:
            tell(Alarm("audit", f"the audit log {self.path}: {self._writer.suspect}"))

    def tell(self, event: Event, at: float | None = None) -> None:
        """Take an event; `at`: when it happened, in seconds since 1970, if not now."""
        facts = event.facts()
        kind = (event.name, str(facts.get("reason") or ""), str(facts.get("who") or ""))
        if not event.public and not self._let_in(kind):
            return
        when = time.time_ns() if at is None else round(at * 1e9)
        try:
            self._queue.put_nowait((when, event.name, facts))
        except queue.Full:
            self._drop()

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits and the last checkpoint, for so long at most."""
        if self._ending.is_set():
            return
        self._ending.set()
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return  # the disk has not taken anything for long; what waits is lost with the process
        self._thread.join(seconds)

    # --- what any thread does --------------------------------------------------------------------

    def _drop(self, count: int = 1) -> None:
        with self._counting:
            self._dropped += count
            first, self._overflowing = not self._overflowing, True
        self._count(count)
        if first:
            self._tell(Alarm("audit", "the audit log cannot keep up: events are dropped"))

    def _let_in(self, name: tuple[str, str, str]) -> bool:
        """Count what clients cause too often; the writer says how many were held back.

        By event, reason and identity: noise of strangers hides nothing of somebody known.
        """
        second = int(time.monotonic())
        with self._counting:
            since, count, held = self._held.get(name, (second, 0, 0))
            if since != second:
                since, count = second, 0
            full = count >= _RATE
            self._held[name] = (since, count + (not full), held + full)
        return not full

    # --- the writing thread ----------------------------------------------------------------------

    def _run(self) -> None:
        ended = last = False
        while not ended or self._batch:
            ended = self._take() or ended
            try:
                self._write()
                if ended or time.monotonic() - self._since >= self._signed:
                    self._sign(ended)
            except (OSError, G2DError) as error:
                self._fail(error)
                if last:
                    self._count(len(self._batch))
                    break
                last = self._ending.wait(_AGAIN)  # at the end it is tried once more
            except Exception as error:  # a fault of ours must not end the log in silence
                self._fail(error)
                self._drop(len(self._batch))
                self._batch.clear()
        self._writer.release()

    def _take(self) -> bool:
        """Take what waits, if nothing is left to write; wait for it until a checkpoint is due.

        Returns:
            Whether it was the end.
        """
        if self._batch:
            return False
        left = max(0.0, self._since + self._signed - time.monotonic())
        wait = left if self._writer.unsigned else 1.0 if self._held else None
        try:
            entry = self._queue.get(timeout=wait)
            while entry is not None and len(self._batch) < INTERVAL:
                self._batch.append(_bounded(entry))
                entry = self._queue.get_nowait()
            if entry is not None:
                self._batch.append(_bounded(entry))
        except queue.Empty:
            entry = self._batch[-1] if self._batch else (0, "", {})
        self._batch += self._lost(entry is None)
        return entry is None

    def _lost(self, ended: bool) -> list[Entry]:
        """Records of what was dropped, and held back until the second before, since the last."""
        now, second = time.time_ns(), int(time.monotonic())
        with self._counting:
            dropped, self._dropped, self._overflowing = self._dropped, 0, False
            over = [n for n, (since, _, _) in self._held.items() if ended or since != second]
            held = {name: self._held.pop(name)[2] for name in over}
        lost: list[Entry] = [(now, GAP, {"dropped": dropped})] if dropped else []
        return lost + [(now, HELD, {"event": n[0], "count": c}) for n, c in held.items() if c]

    def _write(self) -> None:
        if self._failing:
            self._writer.open()
            there = self._writer.found.sequence - self._base
            self._batch = self._batch[max(0, min(there, self._tried)) :]
            self._tried, self._failing = 0, False
            self._tell(Alarm("audit", f"the audit log {self.path} is written again"))
        while self._batch:
            self._tried = 0
            self._writer.turn()
            few = self._batch[: self._writer.room]
            self._base, self._tried = self._writer.head.sequence, len(few)
            self._writer.append(few)
            self._batch, self._tried = self._batch[len(few) :], 0

    def _sign(self, ended: bool) -> None:
        if self._writer.unsigned or ended:
            self._writer.checkpoint(closed=ended)
            self._note(self._writer.head)
        self._since = time.monotonic()

    def _fail(self, error: Exception) -> None:
        """Say once that nothing can be written."""
        first, self._failing = not self._failing, True
        if first:
            why = getattr(error, "strerror", None) or str(error)
            self._tell(Alarm("audit", f"the audit log {self.path} cannot be written: {why}"))


def open_log(file: Path | None, vault: Path, key: SigningKey | None = None) -> AuditLog:
    """Open the log of whoever serves a vault; each of several at once has one of its own.

    Args:
        file: None: the vault's, in the state folder. key: signs it; None: this machine's.

    Raises:
        G2DError: it cannot be opened, or its key cannot be made.
    """
    key = key or audit_key()
    first = file or default_log(vault)
    for count in range(1, _OTHERS + 1):
        path = first if count == 1 else first.with_name(f"{first.stem}-{count}{first.suffix}")
        try:
            return AuditLog(Writer(path, key, anchor_file(path), SEGMENT))
        except LockedError:
            if file is not None or count == _OTHERS:
                raise
    raise AssertionError


def _bounded(entry: Entry) -> Entry:
    at, name, facts = entry
    try:
        stamp(at)
    except (ValueError, OSError, OverflowError):  # a moment that no calendar has
        facts, at = {**facts, "at_ns": str(at)}, time.time_ns()
    return at, name[:100], bounded(facts)
