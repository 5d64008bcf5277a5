"""What becomes of the variants of one input: does the answer fall, does it stay at the boundary?

A search goes downhill: the margin of its queries falls against those before them. Who sends
variants of an input for any other reason sends them in an order that has nothing to do with the
answer. Decision-based attacks (HopSkipJump, boundary) ask about a boundary, again and again, and
move along it, or to the next one: whoever looks at one ambiguous thing does not.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from g2d.core.types import Array
from g2d.service.monitors.queries.evidence import Ranks, Test

LAST, AT_BOUNDARY, FLIPS = 32, 24, 8
"""Variants lie at a boundary where of the last 32 at least 24 have low margins, and 8 another
label than most. So may those of a thing that is ambiguous by itself: see `MOVES`, `Account`."""

MOVES = 1e-3
"""Evidence of moving that is enough at a boundary, if of a thousand inputs with many variants one
at most is ambiguous by itself."""

_FALLEN = 0.75
"""Share of the first answer's margin to which it has to fall before a descent is told: what is not
on its way to a boundary is no search, however it came about."""

_SETTLED, _LEAP, _FLOOR = 4, 1.6, 8
"""An input that differs from the nearest one of its trail by more than so many times what any of
the first variants did, be they four, is another scene: it begins a trail of its own. At least so
many levels of 8 bits."""

_LOW = 0.5  # probabilities of the best two classes closer than this: a low margin
_USUAL, _FEWEST = 0.1, 64  # unless more than a tenth of the answers to fresh inputs are so


@dataclass(frozen=True)
class Step:
    """What a variant adds to its trail: p-values, None: too few came before.

    Attributes:
        descent: its margin is low, it is high, the gap of its best two scores is low, each among
            those before it. drift: it is far from the first variant, it is near it, likewise.
    """

    descent: tuple[float, float, float] | None
    drift: tuple[float, float] | None


class Trail:
    """Variants of one input, from one client or from several.

    Attributes:
        number: unlike any other's. label: of its first. variants: how many followed that. flips:
            how many of those were labelled otherwise. descent: the test that answers have an order.
            drift: the test that inputs have one; both begin with the first variant. drifted: that
            it has found so. counted: it is among the boundaries of its client. clients: who sent
            them, 8 at most.
    """

    __slots__ = (
        "_epoch", "_gaps", "_head", "_last", "_margins", "_moves", "_reach", "_skip", "_sure",
        "clients", "counted", "descent", "drift", "drifted", "flips", "label", "number", "variants",
    )  # fmt: skip

    # Made with the first variant: most inputs have none, and are kept by the hundred thousand.
    _margins: Ranks
    _gaps: Ranks
    _moves: Ranks
    _last: deque[tuple[bool, int, float]]
    descent: Test
    drift: Test

    def __init__(self, number: int, logits: Array, skip: int, head: Array) -> None:
        self.number, self.label, self._skip = number, int(logits.argmax()), skip
        self._sure, self._reach = gap(logits), _FLOOR
        self.variants = self.flips = self._epoch = 0
        self.drifted = self.counted = False
        self.clients: tuple[str, ...] = ()
        self._head = head.copy()  # not a view, which would keep all of its request

    def _begin(self) -> None:
        self._margins, self._gaps, self._moves = (Ranks(self._skip) for _ in range(3))
        self._last = deque(maxlen=LAST)
        self.descent, self.drift = Test(), Test()

    def leaps(self, reach: int) -> bool:
        """Whether an input that differs by so much from the nearest one is another scene's."""
        if self.variants >= _SETTLED and reach > _LEAP * self._reach:
            return True
        self._reach = max(self._reach, reach)
        return False

    @property
    def fallen(self) -> bool:
        """Whether an answer to one of the last variants was that much less sure than the first."""
        return any(margin <= _FALLEN * self._sure for *_, margin in self._last)

    def add(self, logits: Array, values: Array, low: bool, chance: float, epoch: int) -> Step:
        """Take in a variant.

        Args:
            logits: (classes,), the answer. values: (v,), its sketch; (0,): drift is not tested.
            low: whether its margin counts as low. epoch: rises whenever another network answers,
            for margins do not compare.
        """
        if not self.variants:
            self._begin()
        if epoch != self._epoch:
            self._margins.restart()
            self._gaps.restart()
            self._epoch = epoch
        label, apart = int(logits.argmax()), gap(logits)
        margin = apart if label == self.label else float(logits[self.label] - logits[label])
        self.variants += 1
        self.flips += label != self.label
        self._last.append((low, label, margin))
        p, q = self._margins.add(margin, chance), self._gaps.add(apart, chance)
        far = None
        if len(values):
            far = self._moves.add(
                -float(np.square(values.astype(np.float32) - self._head).sum()), chance
            )
        return Step(
            None if p is None or q is None else (p, 1 - p, q),
            None if far is None else (far, 1 - far),
        )

    @property
    def at_boundary(self) -> bool:
        """Whether its last variants lay at a boundary."""
        if (
            self.variants < LAST
            or len(self._last) < LAST
            or sum(low for low, *_ in self._last) < AT_BOUNDARY
        ):
            return False
        common = Counter(label for _, label, _ in self._last).most_common(1)[0][1]
        return LAST - common >= FLIPS

    def forget_boundary(self) -> None:
        """Count the next variants anew: this boundary was told."""
        self._last.clear()


def gap(logits: Array) -> float:
    """The difference of the best two of scores (classes,)."""
    second, best = np.partition(logits, -2)[-2:].tolist()
    return float(best - second)


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
