"""Answers and probes take turns: a probe of `layout` writes NaN into memory that others may read.

That is memory which no load has for itself: a tensor of the user's module, which each network that
is built reads. Many answers may be under way at once, of one network or of several; a probe is
alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["TURNS", "Turns"]

_PATIENCE = 10.0  # seconds: an answer that hangs must not stop every rotation after it


class Turns:
    """Many answer, or one probes; a thread may answer within its own turn of either kind."""

    def __init__(self, patience: float = _PATIENCE) -> None:
        self._lock, self._patience = threading.Lock(), patience
        self._changed = threading.Condition(self._lock)
        self._answers, self._probing = 0, False
        self._own = threading.local()
        self._turn = _Answering(self)

    def answering(self) -> AbstractContextManager[None]:
        """Compute an answer; waits while another thread probes."""
        return self._turn

    def _begin(self) -> None:
        within = getattr(self._own, "depth", 0)
        with self._lock:
            while self._probing and not within:
                self._changed.wait()
            self._answers += 1
        self._own.depth = within + 1

    def _end(self) -> None:
        self._own.depth -= 1
        with self._lock:
            self._answers -= 1
            if self._probing:  # else nobody waits for this
                self._changed.notify_all()

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Probe alone; waits for answers that are under way, ten seconds at most."""
        within = getattr(self._own, "depth", 0)
        until = time.monotonic() + self._patience
        with self._changed:
            while self._probing:
                self._changed.wait()
            self._probing = True  # new answers wait from here on
            while self._answers > within and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
        self._own.depth = within + 1
        try:
            yield
        finally:
            self._own.depth = within
            with self._changed:
                self._probing = False
                self._changed.notify_all()


class _Answering:
    """A thread's turn to answer; it keeps nothing of its own, so that one is enough for all.

    In every answer's way: a generator's context and a notification that nobody waits for would
    take 3.9 µs in place of 1.7.
    """

    __slots__ = ("_turns",)

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        self._turns._begin()

    def __exit__(self, *_: object) -> None:
        self._turns._end()


TURNS = Turns()
"""Of this process: memory that networks share is shared by all of its threads."""
