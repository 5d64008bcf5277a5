"""An upper bound of a mean that holds at all times at once. No service, no torch.

The beta-binomial mixture of Robbins, as Howard et al. 2021 ("Time-uniform, nonparametric,
nonasymptotic confidence sequences", arXiv 1810.08240) and Waudby-Smith and Ramdas 2023 ("Estimating
means of bounded random variables by betting", arXiv 2010.09686) have it: for right answers k of n,

    E_n(m) = B(k + 1, n - k + 1) / (m^k (1 - m)^(n - k))

is a martingale that begins at 1 if each answer is right with chance m, whatever came before. By
Ville's inequality it ever reaches 1 / alpha with chance alpha at most, so one may look after every
label, and stop where one likes.
"""

from __future__ import annotations

import math

_STEPS = 60  # halvings: below 1e-17


def log_evidence(right: int, n: int, m: float) -> float:
    """Logarithm of `E_n(m)`, against the accuracy being m."""
    wrong = n - right
    if (right and m <= 0.0) or (wrong and m >= 1.0):
        return math.inf
    likelihood = (right * math.log(m) if right else 0.0) + (
        wrong * math.log1p(-m) if wrong else 0.0
    )
    beta = math.lgamma(right + 1) + math.lgamma(wrong + 1) - math.lgamma(right + wrong + 2)
    return beta - likelihood


def upper_bound(right: int, n: int, alpha: float) -> float:
    """Return the largest accuracy that `right` of `n` do not speak against; 1.0 of none.

    With chance `alpha` at most it is ever below an accuracy that is not lower than that, at
    whatever n one looks.
    """
    if n in (0, right):
        return 1.0
    low, high, limit = right / n, 1.0, -math.log(alpha)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if log_evidence(right, n, middle) < limit:
            low = middle
        else:
            high = middle
    return high
