"""Label shift by predicted classes: a two-window test of each class's share. Numpy alone.

Black-box shift detection (Lipton, Wang and Smola 2018, arXiv 1802.03916): if the shares of the real
classes move, those of the predicted ones do, as long as the confusion matrix can be inverted.
Rabanser, Günnemann and Lipton 2019 (arXiv 1810.11953) find a test of them (BBSDh) among the best.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from g2d.core.types import Array

_STEP = 16  # requests between marks
_WINDOWS = (64, 128, 256, 512, 960)  # requests; each looked at every eighth of itself, or so
_LOOKS = (16, 16, 32, 64, 64)


@dataclass(frozen=True)
class Shift:
    """What has moved: `share` of `name` was `before`, is `after` in the last `window` requests."""

    name: str
    before: float
    after: float
    window: int


class LabelShift:
    """Compares the last requests' shares with all before them, in five windows.

    The statistic is the likelihood ratio of one share against two. Its chance limits are those of
    chi-square with one degree of freedom, shared out among windows, classes and looks (Bonferroni),
    so that in a steady stream of independent requests alarms are rarer than `chance` a request.
    Counts move in steps, and are above a limit of chi-square up to twice as often as it says: so
    half of the chance is shared out.

    Args:
        least: requests before the window, at least.
    """

    def __init__(self, classes: int, chance: float, least: int) -> None:
        self._classes, self._least = classes, least
        shares = [0.5 * chance / len(_WINDOWS) * look / max(classes, 1) for look in _LOOKS]
        # Chi-square of one degree of freedom is a normal value's square. SciPy has both, and would
        # make every start of a service half a second longer.
        self._limits = np.array([NormalDist().inv_cdf(share / 2) ** 2 for share in shares])
        self.reset()

    def reset(self) -> None:
        """Forget what was usual."""
        self.requests = 0
        self._total = np.zeros(self._classes)
        self._marks: deque[Array] = deque([self._total.copy()], _WINDOWS[-1] // _STEP + 1)

    def add(self, shares: Array) -> Shift | None:
        """Take requests' shares of the classes (r, k); return what has moved first, if anything."""
        for row in shares:
            self._total += row
            self.requests += 1
            if self.requests % _STEP == 0 and (moved := self._look()) is not None:
                return moved
        return None

    def _look(self) -> Shift | None:
        self._marks.append(self._total.copy())
        least, n = self._least, self.requests
        due = [k for k, window in enumerate(_WINDOWS)
               if n % _LOOKS[k] == 0 and n - window >= max(least, window)]  # fmt: skip
        if not due:
            return None
        windows = np.array([_WINDOWS[k] for k in due])[:, None]
        old = np.array([self._marks[-1 - _WINDOWS[k] // _STEP] for k in due])
        ratio = likelihood_ratio(old, n - windows, self._total - old, windows)
        over = ratio / self._limits[due][:, None]
        if over.max() <= 1.0:
            return None
        i, k = np.unravel_index(int(over.argmax()), over.shape)
        window = int(windows[i, 0])
        after = float(self._total[k] - old[i, k]) / window
        return Shift(f"class {k}", float(old[i, k]) / (n - window), after, window)


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
