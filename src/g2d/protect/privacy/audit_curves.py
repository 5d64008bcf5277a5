"""One-run auditing against a whole curve of trade-offs (f-DP), which one pair of numbers is not.

Mahloujifar, Melis, Chaudhuri 2024 (arXiv 2410.22235), for fair coins; the derivation is short
enough to stand here, for the bound rests on nothing else. Of m coins an auditor guesses r; N is how
many are right. Write p_j = P[N = j], and

    R_i = sum_{j >= i} (j / m) p_j,          H_i = sum_{j >= i} ((r - j) / m) p_j.

R_{i+1} is the chance that a coin drawn at random is guessed, rightly, and N >= i + 1. Were that
coin alone turned, the same output would be a wrong guess of it and leave N >= i: averaged over
coins, that event has the chance H_i. A mechanism of trade-off function f gives neighbours' chances
a and b of one event a <= F(b) = 1 - f(b), F concave, so that by Jensen's inequality

    R_{i+1} <= F(H_i),  that is  H_i >= G(R_{i+1}) with G the inverse of F,     for every i < r.

Given P[N >= v] = tau, these are met with the least total chance where all of tau lies on v and each
p_i is as small as the next constraint allows (a shift by mass on j >= i lies in the cone 0 <= dR,
(r - i) dR >= i dH, which every step maps into the next one's, and dR >= 0 with dH >= 0 wherever a
constraint binds). If even that exceeds 1, no mechanism of trade-off f guesses so well with chance
tau. The tests hold the recursion against a linear program over all distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from g2d.errors import SettingsError
from g2d.protect.privacy.audit_bounds import Guesses, largest

Inverse = Callable[[float], float]
"""G: the least chance that a neighbour gives an event which has the given chance; G(1) = 1."""


def gaussian(mu: float) -> Inverse:
    """G of mu-GDP (Dong, Roth, Su 2019): Phi(Phi^-1(y) - mu)."""

    def inverse(y: float) -> float:
        return float(ndtr(ndtri(y) - mu)) if 0 < y < 1 else float(y >= 1)

    return inverse


def of_pairs(pairs: Sequence[tuple[float, float]]) -> Inverse:
    """G of everything that is (epsilon, delta)-DP for each of the pairs: a privacy profile.

    f(x) = max over pairs of max(0, 1 - delta - e^epsilon x, e^-epsilon (1 - delta - x)).

    Raises:
        SettingsError: there is no pair, or an epsilon is negative or a delta no probability.
    """
    epsilons, deltas = np.array(pairs, dtype=float).reshape(-1, 2).T
    if not len(epsilons) or not (epsilons >= 0).all() or not ((deltas >= 0) & (deltas <= 1)).all():
        raise SettingsError(
            f"{list(pairs)[:3]} is no privacy profile: expected pairs of epsilon >= 0 and delta in"
            " [0, 1]"
        )
    finite = np.isfinite(epsilons)
    grown, shrunk, deltas = np.exp(epsilons[finite]), np.exp(-epsilons[finite]), deltas[finite]

    def inverse(y: float) -> float:
        if y >= 1:
            return 1.0
        low = np.maximum((y - deltas) * shrunk, 1 - deltas - grown * (1 - y))
        return max(0.0, float(low.max(initial=0.0)))

    return inverse


def refuted(told: Guesses, inverse: Inverse, alpha: float = 0.05) -> bool:
    """Whether so many right guesses, or more, have a chance below `alpha` under a trade-off curve.

    Time: one call of `inverse` for each right guess.

    Raises:
        SettingsError: alpha is no share of wrong alarms.
    """
    if not 0 < alpha < 1:
        raise SettingsError(f"alpha is {alpha}, expected a share of wrong alarms between 0 and 1")
    m, r, v = told.canaries, told.made, told.right
    if v == 0:
        return False
    right, wrong, most = alpha * v / m, alpha * (r - v) / m, r / m
    for i in range(v - 1, -1, -1):
        grown = max(wrong, inverse(min(1.0, right)))
        right += i / (r - i) * (grown - wrong)
        wrong = grown
        if right + wrong > most * (1 + 1e-9):
            return True
    return False


def tail(told: Guesses, inverse: Inverse) -> float:
    """The largest chance of so many right guesses that a trade-off curve allows: a p-value."""
    low, high = 1e-12, 1.0 - 1e-12
    if not refuted(told, inverse, high):
        return 1.0
    if refuted(told, inverse, low):
        return low
    for _ in range(60):
        middle = math.sqrt(low * high) if high < 0.1 else (low + high) / 2
        low, high = (low, middle) if refuted(told, inverse, middle) else (middle, high)
    return high


def gaussian_lower_bound(told: Guesses, delta: float, alpha: float = 0.05) -> float:
    """The epsilon at `delta` of the largest mu-GDP that is refuted: a bound for Gaussian curves.

    Stronger than `audit_bounds.lower_bound`, and true of mechanisms whose trade-off is that of a
    Gaussian alone; DP-SGD of many steps comes close to one.
    """
    mu = largest(lambda value: refuted(told, gaussian(value), alpha))
    return epsilon_of(mu, delta)


def delta_of(mu: float, epsilon: float) -> float:
    """delta of mu-GDP at epsilon: Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)."""
    if mu == 0:
        return 0.0
    lost = math.exp(min(0.0, epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))
    return max(0.0, float(ndtr(mu / 2 - epsilon / mu)) - lost)


def epsilon_of(mu: float, delta: float) -> float:
    """The epsilon of mu-GDP at delta; 0 where delta alone covers it.

    Raises:
        SettingsError: delta is not above 0.
    """
    if not 0 < delta <= 1:
        raise SettingsError(
            f"delta is {delta}, expected a probability above 0: a Gaussian has none"
        )
    return largest(lambda epsilon: delta_of(mu, epsilon) > delta)
