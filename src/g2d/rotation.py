"""Rotation in process: an immutable snapshot, swapped by one assignment. No HTTP, no torch.

A call captures one snapshot and is answered wholly by it, whatever rotates meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Snapshot:
    """One generation, ready to answer: its number and its forward pass."""

    number: int
    predict: Callable[[Any], Any]


class Source(Protocol):
    """Where snapshots come from; a `Defence` is one."""

    def snapshot(self) -> Snapshot:
        """Return the generation that is live."""
        ...

    def advance(self) -> Snapshot:
        """Make the next generation live and return it; raise and change nothing if none passes."""
        ...


class Rotor:
    """Serves the live generation as a callable, and rotates it; safe to use from many threads.

    >>> rotor = Rotor(defence)      # doctest: +SKIP
    >>> logits = rotor(x)           # answered by exactly one generation
    >>> rotor.rotate()              # the next generation is live

    `rotate` raises `GenerationError` if no candidate passes its gates: the live generation stays.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._snapshot = source.snapshot()
        self._rotating = threading.Lock()

    @property
    def number(self) -> int:
        """Number of the live generation."""
        return self._snapshot.number

    @property
    def snapshot(self) -> Snapshot:
        """The live snapshot: hold it to answer several calls from one generation."""
        return self._snapshot

    def __call__(self, x: Any) -> Any:
        """Answer from the live generation."""
        return self._snapshot.predict(x)

    def rotate(self) -> int:
        """Swap in the next generation and return its number; one rotation at a time."""
        with self._rotating:
            fresh = self._source.advance()
            if fresh.number <= self._snapshot.number:
                raise AssertionError("generation numbers only rise")
            self._snapshot = fresh
            return fresh.number
