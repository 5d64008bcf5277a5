"""One-run auditing: what guesses about planted canaries prove of a claimed (epsilon, delta).

Of m canaries each is trained on or not by a fair coin of its own; an auditor, who is shown what was
released and no coin, guesses r of the coins and abstains from the others. Whoever guesses too well
refutes the claim. Pure statistics: how canaries are made and scored is elsewhere, and what a whole
curve of trade-offs allows is in `audit_curves`.

The number of guesses has to be settled before anything is looked at; which canaries are guessed
may depend on all that was released. Neighbours differ by one canary that is there or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from g2d.core.types import Array
from g2d.errors import SettingsError

_STEPS = 50  # halvings of an interval: far below what is printed


@dataclass(frozen=True)
class Guesses:
    """How guessing went: `right` of `made` guesses about `canaries` coins."""

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.made <= self.canaries or self.canaries < 1:
            raise SettingsError(
                f"{self.right} right of {self.made} guesses about {self.canaries} canaries cannot"
                " be: expected 0 <= right <= guesses <= canaries, and a canary at least"
            )


def p_value(told: Guesses, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are, at most, where a release is (epsilon, delta)-DP.

    Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), theorem 5.2: with R ~ Binomial(r, q) and
    q = e^epsilon / (1 + e^epsilon),

        P[right >= v] <= P[R >= v] + 2 m delta max_{1 <= i <= v} P[v - i <= R < v] / i.

    Raises:
        SettingsError: epsilon is negative, or delta is no probability.
    """
    _check(epsilon, delta)
    v = told.right
    q = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(v - 1, told.made, q))
    if v == 0 or delta == 0:
        return min(1.0, beta)
    below = np.cumsum(binom.pmf(np.arange(v - 1, -1, -1), told.made, q))
    alpha = float((below / np.arange(1, v + 1)).max())
    return min(1.0, beta + 2 * told.canaries * delta * alpha)


def lower_bound(told: Guesses, delta: float, alpha: float = 0.05) -> float:
    """The largest epsilon that the guesses refute at `delta`, wrongly in a share `alpha` at most.

    0 where nothing is refuted. `p_value` rises with epsilon: what lies below is refuted, too.

    Raises:
        SettingsError: delta or alpha is no probability.
    """
    _check(0.0, delta)
    if not 0 < alpha < 1:
        raise SettingsError(f"alpha is {alpha}, expected a share of wrong alarms between 0 and 1")
    return largest(lambda epsilon: p_value(told, epsilon, delta) < alpha)


def power(canaries: int, made: int, delta: float, alpha: float = 0.05) -> float:
    """The largest epsilon that so many guesses could certify, were every one of them right."""
    return lower_bound(Guesses(canaries, made, made), delta, alpha)


def largest(refuted: Callable[[float], bool]) -> float:
    """Where `refuted` ends to hold, to 1e-12 of it; 0: it holds nowhere. It holds below if above.

    The answer is on the side that is refuted.
    """
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
        if high > 1e4:  # no number of canaries that anybody has goes there
            return low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def guess(scores: Array, made: int) -> Array:
    """Guess `made` coins from scores (m,): +1 for the highest half of them, -1 for the lowest.

    0 abstains. Larger means more likely trained on. Equal scores are taken in order: canaries have
    none that tells of their coins.

    Raises:
        SettingsError: there are more guesses than scores, or a score is not finite.
    """
    if not 0 <= made <= len(scores):
        raise SettingsError(f"{made} guesses about {len(scores)} canaries; expected no more")
    if not np.isfinite(scores).all():
        raise SettingsError("a canary's score is not finite: a network that was released diverged")
    order = np.argsort(scores, kind="stable")
    guesses = np.zeros(len(scores), dtype=np.int64)
    guesses[order[: made // 2]] = -1
    guesses[order[len(order) - (made - made // 2) :]] = 1
    return guesses


def judge(guesses: Array, coins: Sequence[bool] | Array) -> Guesses:
    """Compare guesses (+1, -1, 0) with the coins (True: trained on)."""
    signs = np.where(np.asarray(coins, dtype=bool), 1, -1)
    given = np.asarray(guesses)
    return Guesses(len(signs), int((given != 0).sum()), int((given == signs).sum()))


def _check(epsilon: float, delta: float) -> None:
    if not epsilon >= 0:
        raise SettingsError(f"epsilon is {epsilon}, expected 0 or more")
    if not 0 <= delta <= 1:
        raise SettingsError(f"delta is {delta}, expected a probability")
