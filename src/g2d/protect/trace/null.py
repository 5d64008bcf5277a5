"""What a likeness is worth: its null, fitted on networks that a suspect was certainly not made from.

Every network of a vault is held against each generation as if it were the suspect. Whatever a
generation shares with its like, by its basin, its members or its polish, is in these cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2d.core.types import Array

_TAIL = 0.05  # share of a sample that counts as its upper tail
_FEW = 10  # cosines from which on their standard deviation says something
_LEAST = 0.5  # least normal quantile that a sample's tail is held against


@dataclass(frozen=True)
class Null:
    """Fisher's z = atanh(cosine) of networks that did not leak: Student's t about `mean`.

    `scale` is the largest that a kind of null network asks for: its standard deviation, or what a
    normal law needs to reach as far as the upper twentieth of that kind did (the check for heavier
    tails). `freedom` counts networks, not their pairs, which are not independent. 0: unknown.
    """

    mean: float
    scale: float
    freedom: int

    @classmethod
    def fit(cls, cosines: Sequence[Array], networks: int) -> Null:
        """Fit on cosines of each kind of null network; `networks`: how many stand behind them."""
        values = [fisher(kind[np.isfinite(kind)]) for kind in cosines]
        values = [kind for kind in values if len(kind)]
        freedom = networks - 2
        if not values or freedom < 1:
            return cls(0.0, 1.0, 0)
        # A suspect from elsewhere is like nobody: a mean below zero, as of residuals, is no help.
        mean = max(0.0, *(float(kind.mean()) for kind in values if len(kind) >= _FEW), 0.0)
        return cls(mean, max(_scale(kind - mean) for kind in values), freedom)

    def p(self, cosine: Array | float) -> Array:
        """P(a cosine at least this large | it did not leak), one-sided; 1 where unknown."""
        from scipy.stats import t

        z = fisher(np.asarray(cosine, dtype=np.float64))
        if not self.freedom:
            return np.ones_like(z)
        return t.sf((z - self.mean) / self.scale, self.freedom)

    def needed(self, p: float) -> float:
        """The least cosine whose p-value is at most `p`; 1.0 where none is."""
        from scipy.stats import t

        if not self.freedom:
            return 1.0
        return float(np.tanh(self.mean + self.scale * t.isf(p, self.freedom)))


def fisher(cosine: Array) -> Array:
    """Fisher's transform, which makes cosines of independent vectors nearly normal."""
    return np.arctanh(np.clip(cosine, -1 + 1e-12, 1 - 1e-12))


def _scale(z: Array) -> float:
    """The standard deviation of a normal law that covers a centred sample and its upper tail."""
    from scipy.stats import norm

    spread = float(np.sqrt(np.square(z).mean())) if len(z) >= _FEW else 0.0
    top = np.sort(z)[::-1][: max(1, int(len(z) * _TAIL))]
    ranks = (np.arange(1, len(top) + 1) - 0.375) / (len(z) + 0.25)  # Blom 1958
    reach = float((top / np.maximum(norm.isf(ranks), _LEAST)).max())
    return max(spread, reach, 1e-6)
