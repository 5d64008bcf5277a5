"""Label shift by predicted classes: evidence, request by request, that a class has become rarer or
more frequent. Numpy alone.

Black-box shift detection (Lipton, Wang and Smola 2018, arXiv 1802.03916): if the shares of the real
classes move, those of the predicted ones do, as long as the confusion matrix can be inverted. The
test is an e-detector (Shin, Ramdas and Rinaldo 2023, arXiv 2203.03532) of the kind of Shiryaev and
Roberts, which looks at every request and needs no window.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from g2d.core.types import Array

_TIMES = np.array([1 / 16, 1 / 4, 1 / 2, 2.0, 5.0])  # as frequent as it was
_WEIGHTS = np.array([0.05, 0.1, 0.375, 0.375, 0.1])
_STEP, _MARKS = 16, 256  # requests between marks, and marks: what an alarm says looks back so far
_SURE = 15.0  # likelihood ratio of a change, without which a sum of many stakes is no alarm


@dataclass(frozen=True)
class Shift:
    """What has moved: `share` of `name` was `before`, is `after` in the last `window` requests."""

    name: str
    before: float
    after: float
    window: int


class LabelShift:
    """Bets, for each class, that it comes a certain number of times as often as it did.

    With x the share of a class in a request, s its mean in all requests up to and with this one,
    and r a number of times, `f = (1 + (r - 1) x) / (1 + (r - 1) s)` is 1 in the mean over these
    requests: if they come in no particular order, whoever bets on r wins nothing. The evidence
    `R = (R + 1) f`, averaged over classes and several r, then is one a request in the mean, and
    reaches 1 / `chance` once in so many requests at most.

    What is usual is learned from all requests, the last ones included: the alternative, to hold a
    window back, would count errors of what is usual for evidence.

    Args:
        least: requests before the first bet.
    """

    def __init__(self, classes: int, chance: float, least: int) -> None:
        self._classes, self._least, self._enough = classes, least, 1 / chance
        self._weights = _WEIGHTS[:, None] / max(classes, 1)
        self.reset()

    def reset(self) -> None:
        """Forget what was usual."""
        self.requests = 0
        self._total = np.zeros(self._classes)
        self._evidence = np.zeros((len(_TIMES), self._classes))
        self._marks: deque[tuple[int, Array]] = deque([(0, self._total)], _MARKS)

    def add(self, shares: Array) -> Shift | None:
        """Take requests' shares of the classes (r, k); return what has moved first, if anything."""
        at = 0
        while at < len(shares):
            # To the next mark at most, so that products of bets stay within range.
            some = shares[at : at + _STEP - self.requests % _STEP]
            taken, moved = self._take(some)
            if moved is not None:
                return moved
            at += taken
        return None

    def _take(self, shares: Array) -> tuple[int, Shift | None]:
        """Take some requests: how many, and what has moved after those."""
        totals = self._total + shares.cumsum(0)
        numbers = self.requests + np.arange(1, len(shares) + 1)
        idle = int((numbers <= self._least).sum())
        taken, crossed = len(shares), False
        if idle < taken:
            gain = (_TIMES - 1)[:, None]
            usual = (totals / numbers[:, None])[idle:, None]
            bets = (1 + gain * shares[idle:, None]) / (1 + gain * usual)
            won = bets.cumprod(0)
            stakes = np.concatenate([np.ones((1, *won.shape[1:])), 1 / won[:-1]]).cumsum(0)
            evidence = won * (self._evidence + stakes)
            over = np.flatnonzero((self._weights * evidence).sum((1, 2)) >= self._enough)
            crossed = bool(len(over))
            taken = idle + int(over[0]) + 1 if crossed else taken
            self._evidence = evidence[taken - idle - 1]
        self.requests, self._total = int(numbers[taken - 1]), totals[taken - 1]
        moved = self._moved() if crossed else None
        if self.requests % _STEP == 0:
            self._marks.append((self.requests, self._total))
        return taken, moved

    def _moved(self) -> Shift | None:
        """What the evidence is about; None, and its evidence is spent: nothing has moved.

        Evidence that wins nothing and loses nothing grows by its stakes alone: of a class that
        never comes, say.
        """
        i, k = np.unravel_index(
            int((self._weights * self._evidence).argmax()), self._evidence.shape
        )
        starts = np.array([number for number, _ in self._marks])
        before = np.array([total[k] for _, total in self._marks])
        some = (starts > 0) & (starts < self.requests)
        starts, before = starts[some], before[some]
        windows, inside = self.requests - starts, self._total[k] - before
        ratios = likelihood_ratio(before, starts, inside, windows)
        ratios[(inside / windows > before / starts) != (_TIMES[i] > 1)] = 0.0
        best = int(ratios.argmax()) if len(ratios) else 0
        if not len(ratios) or ratios[best] < _SURE:
            self._evidence[i, k] = 0.0
            return None
        window = int(windows[best])
        return Shift(f"class {k}", before[best] / starts[best], inside[best] / window, window)


def likelihood_ratio(first: Array, n: Array | int, second: Array, m: Array | int) -> Array:
    """Twice the log likelihood ratio of two shares against one, for each class.

    Args:
        first: (.., k) counts among n requests. second: among m others.
    """
    both, of = first + second, n + m
    inside = _entropic(first, n) + _entropic(second, m) - _entropic(both, of)
    return 2 * np.maximum(inside, 0.0)


def _entropic(count: Array, n: Array | int) -> Array:
    """Logarithm of the largest likelihood of `count` among n: 0 log 0 is 0."""
    rest = np.maximum(n - count, 0.0)  # of shares that were added up, rounding
    return _times_log(count, count / n) + _times_log(rest, rest / n)


def _times_log(count: Array, share: Array) -> Array:
    """`count * log(share)`, and 0 where there is none."""
    some = count > 0
    return np.where(some, count * np.log(np.where(some, share, 1.0)), 0.0)
