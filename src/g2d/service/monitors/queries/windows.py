"""What was seen lately: the last inputs of one client, and the hashes of everybody's.

A client's window is exact: every input of it is compared. Everybody's is a table of hashes of fixed
size, in which newer ones take the places of older ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from g2d.core.types import Array
from g2d.service.monitors.queries.evidence import NOTHING, Evidence, worth
from g2d.service.monitors.queries.fingerprints import KEPT, Fingerprints, Prints, apart_from

if TYPE_CHECKING:
    from g2d.service.monitors.queries.trails import Trail

MATCHES = 0.5
"""Share of their hashes that two inputs have in common which count as near (25 of 50, the
paper's)."""

_ONES = np.ones(KEPT, np.float32)
_REACH = 3  # as so many values say how far inputs are apart
_FIRST = 16  # places of a client's window at first


def scratch() -> Array:
    """Room to note which hashes an input has, for `Window`."""
    return np.zeros(1 << 16, np.float32)


class Met(NamedTuple):
    """The input of a window that is most like another one.

    Attributes:
        trail: its trail; None: none is near. same: it is the same, bit by bit. reach: how far a few
            of its values lie from the other's, in levels of 8 bits.
    """

    trail: Trail | None
    same: bool = False
    reach: int = 0


class Window:
    """The last inputs of a client, and the trail of each.

    Args:
        most: inputs that it holds; memory grows to that as they come, some 700 bytes each. met:
            scratch from `scratch`, shared by all windows of one thread.
    """

    def __init__(self, most: int, met: Array) -> None:
        self._met = met
        self._most, self._used, self._next = most, 0, 0
        self._tags = np.zeros((0, KEPT), np.uint16)
        self._values: Array = np.zeros((0, 0), np.uint8)
        self._digests = np.zeros(0, np.uint64)
        self._trails: list[Trail] = []

    def find(self, prints: Prints, i: int, by: Fingerprints) -> Met:
        """Return what is most like input i."""
        used = self._used
        if not used:
            return Met(None)
        same = np.flatnonzero(self._digests[:used] == prints.digests[i])
        if len(same):
            return Met(self._trails[same[0]], True)
        value, values = prints.values[i], self._values[:used]
        close = by.close(value, values)
        if len(close):
            # Of several the nearest, for one may have been sent beside others that it is near to.
            apart = apart_from(value, values[close])
            best = int(apart.sum(1, dtype=np.int64).argmin())
            return Met(self._trails[close[best]], False, _reach(apart[best]))
        kept = int(prints.kept[i])
        if not kept:
            return Met(None)
        tags = _tags(prints.hashes[i])
        self._met[tags] = 1
        self._met[0] = 0  # of inputs with fewer hashes
        shared = self._met[self._tags[:used]] @ _ONES
        self._met[tags] = 0
        best = int(shared.argmax())
        if shared[best] < MATCHES * kept:
            return Met(None)
        return Met(self._trails[best], False, _reach(apart_from(value, values[best])))

    @property
    def evidence(self) -> Evidence:
        """The largest evidence of its trails."""
        found = (trail.descent.evidence for trail in self._trails if trail.variants)
        return max(found, key=worth, default=NOTHING)

    def add(self, prints: Prints, i: int, trail: Trail) -> None:
        """Remember input i; the oldest gives way."""
        place = self._next
        if place >= len(self._digests):
            self._grow(prints.values.shape[1])
        self._tags[place] = _tags(prints.hashes[i])
        self._values[place] = prints.values[i]
        self._digests[place] = prints.digests[i]
        if place < self._used:
            self._trails[place] = trail
        else:
            self._trails.append(trail)
        self._used = max(self._used, place + 1)
        self._next = (place + 1) % self._most

    def _grow(self, values: int) -> None:
        size = min(self._most, max(_FIRST, 2 * len(self._digests)))
        more = size - len(self._digests)
        if not self._used:
            self._values = np.zeros((0, values), np.uint8)
        self._tags = np.pad(self._tags, ((0, more), (0, 0)))
        self._values = np.pad(self._values, ((0, more), (0, 0)))
        self._digests = np.pad(self._digests, (0, more))


class Everybody:
    """The hashes of the last inputs of all clients, and the number of the trail of each.

    A table in which the low bits of a hash say where it lies: newer ones take the place of older.

    Args:
        bits: it has 2^bits places of 16 bytes, for 50 hashes an input.
    """

    def __init__(self, bits: int = 19) -> None:
        self._mask = np.uint64((1 << bits) - 1)
        self._hashes = np.zeros(1 << bits, np.uint64)
        self._trails = np.zeros(1 << bits, np.int64)
        self._seen = np.zeros(1 << min(bits, 16), np.uint64)  # digests, likewise

    def same(self, digest: np.uint64) -> bool:
        """Whether this very input was seen lately, and remember it."""
        place = int(digest) % len(self._seen)
        known = bool(self._seen[place] == digest)
        self._seen[place] = digest
        return known

    def find(self, hashes: Array, kept: int) -> int:
        """Return the number of the trail that has half or more of an input's hashes, 0: none."""
        own = hashes[hashes > 0]
        places = (own & self._mask).astype(np.int64)
        found = self._trails[places][self._hashes[places] == own]
        if len(found) < MATCHES * kept or not kept:
            return 0
        numbers, counts = np.unique(found, return_counts=True)
        best = int(counts.argmax())
        return int(numbers[best]) if counts[best] >= MATCHES * kept else 0

    def add(self, hashes: Array, trail: int) -> None:
        """Remember an input's hashes as a trail's."""
        own = hashes[hashes > 0]
        places = (own & self._mask).astype(np.int64)
        self._hashes[places], self._trails[places] = own, trail


def _reach(apart: Array) -> int:
    """The third largest of differences (v,): one or two may be an accident; 0: there are none."""
    return int(np.partition(apart, -_REACH)[-_REACH]) if len(apart) >= _REACH else 0


def _tags(hashes: Array) -> Array:
    """The 16 bits by which hashes are compared in a client's window; 0: there is none."""
    return (hashes >> np.uint64(48)).astype(np.uint16)
