"""Label shift by predicted classes: a two-window test of each class's share. Numpy alone.

Black-box shift detection (Lipton, Wang and Smola 2018, arXiv 1802.03916): if the shares of the real
classes move, those of the predicted ones do, as long as the confusion matrix can be inverted.
Rabanser, Günnemann and Lipton 2019 (arXiv 1810.11953) find a test of them (BBSDh) among the best.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri

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

    Args:
        least: requests before the window, at least.
    """

    def __init__(self, classes: int, chance: float, least: int) -> None:
        self._classes, self._least = classes, least
        shares = [chance / len(_WINDOWS) * look / max(classes, 1) for look in _LOOKS]
        self._limits = [float(chdtri(1, share)) for share in shares]
        self.reset()

    def reset(self) -> None:
        """Forget what was usual."""
        self.requests = 0
        self._total = np.zeros(self._classes)
        self._marks: deque[Array] = deque([self._total.copy()], _WINDOWS[-1] // _STEP + 1)

    def add(self, shares: Array) -> Shift | None:
        """Take one request's shares of the classes (k,); return what has moved, if anything."""
        self._total += shares
        self.requests += 1
        if self.requests % _STEP:
            return None
        self._marks.append(self._total.copy())
        for window, look, limit in zip(_WINDOWS, _LOOKS, self._limits, strict=True):
            before = self.requests - window
            if self.requests % look or before < max(self._least, window):
                continue
            old = self._marks[-1 - window // _STEP]
            ratio = likelihood_ratio(old, before, self._total - old, window)
            if ratio.max() > limit:
                k = int(ratio.argmax())
                after = float(self._total[k] - old[k]) / window
                return Shift(f"class {k}", float(old[k]) / before, after, window)
        return None


def likelihood_ratio(first: Array, n: int, second: Array, m: int) -> Array:
    """Twice the log likelihood ratio of two shares against one, for each class.

    Args:
        first: (k,) counts among n requests. second: among m others.
    """
    p, q, r = first / n, second / m, (first + second) / (n + m)
    return 2 * (n * _divergence(p, r) + m * _divergence(q, r))


def _divergence(p: Array, r: Array) -> Array:
    """Kullback-Leibler divergence of Bernoulli shares; 0 where r is 0 or 1, for then p is, too."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one = np.where(p > 0, p * np.log(p / r), 0.0)
        other = np.where(p < 1, (1 - p) * np.log((1 - p) / (1 - r)), 0.0)
    found: Array = np.nan_to_num(one + other, nan=0.0, posinf=0.0, neginf=0.0)
    return found
