"""What a score is worth: an empirical null, from what the suspect says of networks it is not of.

A network that is no part of the suspect has a coefficient that is as often below zero as above; a
part of it never lies below. So the scores below zero show how far chance, noise that is not white,
fine-tuning and all that such networks share with the suspect carry a score, for this very suspect
(an empirical null by its lower half: Efron 2004, JASA 99).
A generation that the vault does not know any more scores widely in both directions, and so raises
the bar by itself; how far above its own bar such a one may still come is read off the known
generations, each as if it were a suspect that nobody knows (`excess`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2d.core.types import Array

_TAIL = 0.1  # share of the scores that counts as their tail
_LEAST = 0.5  # least normal quantile that the tail is held against


@dataclass(frozen=True)
class Null:
    """Scores of networks that are no part: Student's t of `freedom` about 0, times `scale`.

    `freedom`: scores below zero that it is fitted on; 0: there are none, and nothing is known.
    """

    scale: float
    freedom: int

    @classmethod
    def fit(cls, own: Array, others: Sequence[Array] = ()) -> Null:
        """Fit on the scores of one group, and of other groups that the suspect was held against.

        The scale is the largest of: 1, which white noise would give; the root mean square of the
        scores below zero, of this group and of all; what a normal law needs to reach as far as the
        lowest tenth of them (the check for heavier tails).
        """
        whole = np.concatenate([own, *others])
        asked = [1.0]
        for scores in (own, whole):
            if len(below := scores[scores < 0]):
                asked += [float(np.sqrt(np.square(below).mean())), _reach(below, len(scores))]
        return cls(max(asked), int((whole < 0).sum()))

    def wider(self, excess: float) -> Null:
        """The same, its scale so many times as large."""
        return replace(self, scale=self.scale * excess)

    def p(self, score: Array | float) -> Array:
        """P(a score at least this large | it is no part of the suspect), one-sided."""
        from scipy.stats import t

        score = np.asarray(score, dtype=np.float64)
        if not self.freedom:
            return np.ones_like(score)
        return t.sf(score / self.scale, self.freedom)

    def needed(self, p: float) -> float:
        """The least score whose p-value is at most `p`; infinite where nothing is known."""
        from scipy.stats import t

        return float(self.scale * t.isf(p, self.freedom)) if self.freedom else np.inf


def excess(left_out: Sequence[tuple[Array, Array]], freedom: int) -> float:
    """By how much known generations exceed their own null when they are left out, at least 1.

    Args:
        left_out: for each generation that was left out its scores of all other networks of its
            group, and of the generations among them. freedom: of the null.
    """
    from scipy.stats import t

    ratios = [some / Null.fit(whole).scale for whole, some in left_out]
    pooled = np.sort(np.concatenate([np.empty(0), *ratios]))[::-1]
    if not len(pooled) or not freedom:
        return 1.0
    top = pooled[: max(1, int(len(pooled) * _TAIL))]
    ranks = (np.arange(1, len(top) + 1) - 0.375) / (len(pooled) + 0.25)
    return max(1.0, float((top / np.maximum(t.isf(ranks, freedom), 1.0)).max()))


def _reach(below: Array, count: int) -> float:
    """The standard deviation of a normal law that covers the lowest of `count` scores."""
    from scipy.stats import norm

    low = -np.sort(below)[: max(1, int(count * _TAIL))]
    ranks = (np.arange(1, len(low) + 1) - 0.375) / (count + 0.25)  # Blom 1958
    return float((low / np.maximum(norm.isf(ranks), _LEAST)).max())
