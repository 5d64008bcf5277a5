"""What becomes of the variants of one input: does the answer fall, does it stay at the boundary?

A search goes downhill: the margin of its queries falls against those before them. Who sends variants
of an input for any other reason sends them in an order that has nothing to do with the answer. And
decision-based attacks (HopSkipJump, boundary) ask about a boundary itself, again and again.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from g2d.core.types import Array
from g2d.service.monitors.queries.evidence import Ranks

LAST, AT_BOUNDARY, FLIPS = 128, 96, 8
"""Of the last 128 variants of an input at least 96 have low margins, and 8 another label: a boundary
is being asked about. Of an input whose variants have low margins half of the time at most, that comes
by chance 7 times in 10^9 (binomial)."""

_LOW = 0.5  # probabilities of the best two classes closer than this: a low margin
_USUAL, _FEWEST = 0.1, 64  # unless more than a tenth of the answers to fresh inputs are so


@dataclass(frozen=True)
class Step:
    """What a variant adds to its trail.

    Attributes:
        p: how low its margin is among those before it, see `Ranks`; None: not told. boundary: the
            trail has been asking about a boundary.
    """

    p: float | None
    boundary: bool


class Trail:
    """Variants of one input, from one client or from several.

    Attributes:
        number: unlike any other's. label: of its first. variants: how many followed that. flips:
            how many of those were labelled otherwise. clients: who sent them, 8 at most.
    """

    __slots__ = ("_epoch", "_last", "_ranks", "clients", "evidence", "flips", "label", "number",
                 "variants")  # fmt: skip

    def __init__(self, number: int, label: int, skip: int, evidence: tuple[float, ...]) -> None:
        self.number, self.label = number, label
        self.variants = self.flips = 0
        self.evidence = evidence
        self.clients: set[str] = set()
        self._ranks = Ranks(skip)
        self._last: deque[tuple[bool, int]] = deque(maxlen=LAST)
        self._epoch = 0

    def add(self, logits: Array, low: bool, chance: float, epoch: int) -> Step:
        """Take in the answer to a variant.

        Args:
            logits: (classes,). low: whether its margin counts as low. epoch: rises whenever
                another network answers, for its margins do not compare.
        """
        if epoch != self._epoch:
            self._ranks.restart()
            self._epoch = epoch
        label = int(logits.argmax())
        self.variants += 1
        self.flips += label != self.label
        others = np.delete(logits, self.label)
        p = self._ranks.add(float(logits[self.label] - others.max()), chance)
        self._last.append((low, label))
        boundary = self.variants >= AT_BOUNDARY and self._asks_boundary()
        if boundary:
            self._last.clear()
        return Step(p, boundary)

    def _asks_boundary(self) -> bool:
        if sum(low for low, _ in self._last) < AT_BOUNDARY:
            return False
        common = Counter(label for _, label in self._last).most_common(1)[0][1]
        return len(self._last) - common >= FLIPS


class Margins:
    """Which margins are low, from what answers to fresh inputs are like.

    Low is a difference of the best two probabilities below 1/2; where more than a tenth of the
    answers to fresh inputs are below that, their tenth. Begins anew with each generation.
    """

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=512)
        self._limit, self._due = _LOW, _FEWEST

    def restart(self) -> None:
        """Another network answers."""
        self._usual.clear()
        self._limit, self._due = _LOW, _FEWEST

    @staticmethod
    def of(logits: Array) -> Array:
        """Differences (n,) of the best two probabilities of logits (n, classes)."""
        scores = np.exp(logits - logits.max(1, keepdims=True))
        best = np.partition(scores, -2, axis=1)[:, -2:]
        return (best[:, 1] - best[:, 0]) / scores.sum(1)

    def low(self, margin: float) -> bool:
        """Whether a margin is low."""
        return margin < self._limit

    def usual(self, margin: float) -> None:
        """Learn the margin of a fresh input."""
        self._usual.append(margin)
        self._due -= 1
        if self._due <= 0:
            self._due = _FEWEST
            self._limit = min(_LOW, float(np.quantile(np.array(self._usual), _USUAL)))
