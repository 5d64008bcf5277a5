"""Rotation: immutable snapshots swapped by one assignment. No HTTP, no torch.

A call captures one snapshot and is answered wholly by it, whatever rotates meanwhile. `Rotor` is
for one's own code; when a service swaps, from a warm spare, is decided in `scheduler`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from g2d.errors import G2DError


@dataclass(frozen=True)
class Snapshot:
    """One generation, ready to answer: its number and its forward pass.

    Attributes:
        check: names what has changed in its memory since it was loaded; None: nothing watches it.
        interval: seconds between checks that keep their cost small. expires: when it should not be
            live any more, in seconds since 1970. layout: how its parameters lie in memory, in
            words ("secret", "plain"); "": it has none. encrypted: holds what answers ciphertexts of
            this generation, for as long as it is held itself; None: nothing does.
    """

    number: int
    predict: Callable[[Any], Any]
    check: Callable[[], list[str]] | None = None
    interval: float = 0.5
    expires: float = math.inf
    layout: str = ""
    encrypted: Any = None


class Source(Protocol):
    """Where snapshots come from; a `Defence` is one. `Rotor` may call both from two threads."""

    def snapshot(self) -> Snapshot:
        """Return the generation that is live, from where it is kept and not from memory."""
        ...

    def advance(self) -> Snapshot:
        """Make the next generation live and return it; raise and change nothing if none passes."""
        ...


class Live:
    """Holds the live snapshot; whoever reads it keeps what was read until the answer is out."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._writing = threading.Lock()

    @property
    def number(self) -> int:
        """Number of the live generation."""
        return self._snapshot.number

    @property
    def snapshot(self) -> Snapshot:
        """The live snapshot: hold it to answer several calls from one generation."""
        return self._snapshot

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """All that answer, oldest first: here one alone, see `window`."""
        return (self._snapshot,)

    def tend(self, now: float) -> tuple[int, ...]:
        """Let go what may answer no more, at `now` seconds since 1970; called twice a second.

        Returns:
            Numbers whose time has ended, of those beside the newest; their elders left with them.
        """
        return ()

    def remember(self) -> None:
        """Note outside what may be live after a restart; called after `tend`, and may raise."""

    def leave(self, number: int) -> bool:
        """Answer no more from a generation that nothing can heal, if a newer one is live."""
        return False

    def swap(self, fresh: Snapshot) -> int:
        """Make a newer generation live; the old one is freed when its last answer is out."""
        with self._writing:
            if fresh.number <= self._snapshot.number:
                raise AssertionError("generation numbers only rise")
            self._snapshot = fresh
            return fresh.number

    def heal(self, fresh: Snapshot) -> bool:
        """Replace the live snapshot by a sound copy of the same generation, if it is still live."""
        with self._writing:
            same = fresh.number == self._snapshot.number
            if same:
                self._snapshot = fresh
            return same


class Rotor(Live):
    """Serves the live generation as a callable, and rotates it; safe to use from many threads.

    >>> rotor = Rotor(defence)      # doctest: +SKIP
    >>> logits = rotor(x)           # answered by exactly one generation
    >>> rotor.rotate()              # the next generation is live

    `rotate` raises `GenerationError` if no candidate passes its gates: the live generation stays.

    Nothing here runs by itself: call `check` from a thread of yours, every
    `rotor.snapshot.interval` seconds at most, to have weights that changed in memory found and
    healed. `rotate` calls it, for making the next generation takes its time.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source.snapshot())
        self._source = source
        self._rotating, self._checking = threading.Lock(), threading.Lock()

    def __call__(self, x: Any) -> Any:
        """Answer from the live generation."""
        return self._snapshot.predict(x)

    def rotate(self) -> int:
        """Swap in the next generation and return its number; one rotation at a time."""
        with self._rotating:
            with suppress(G2DError):  # what cannot be healed is replaced all the more
                self.check()
            fresh = self._source.advance()
            self._take(fresh)
            return fresh.number

    def check(self) -> list[str]:
        """Look for changes of the live weights in memory, and heal them from the source.

        No answer mixes healed weights with damaged ones: a sound copy takes their place at once. A
        `Defence` that is just making the next generation gives one when that is done.

        Returns:
            Names of the tensors that had changed; []: all were sound.

        Raises:
            G2DError: the source has no sound copy either: what changed is still live.
        """
        with self._checking:
            snapshot = self._snapshot
            changed = snapshot.check() if snapshot.check else []
            if changed:
                self._take(self._source.snapshot())  # newer, if the source was advanced elsewhere
            return changed

    def _take(self, fresh: Snapshot) -> None:
        """Answer from a snapshot, unless a newer one does already."""
        with self._writing:
            if fresh.number >= self._snapshot.number:
                self._snapshot = fresh
