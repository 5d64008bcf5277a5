"""Shares of examples and what they leave open: intervals and bounds; no torch."""

from __future__ import annotations

import math
from statistics import NormalDist

from g2d.errors import SettingsError


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927): honest at 0 % and 100 % and for small n.

    Raises:
        SettingsError: successes lie outside [0, n], or confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence must lie between 0 and 1, not {confidence}")
    if n == 0:
        return 0.0, 1.0
    if not 0 <= successes <= n:
        raise SettingsError(
            f"{successes} successes of {n} is not a share; give 0 <= successes <= n"
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else max(0.0, (centre - width) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + width) / scale)
    return low, high


def highest_share(successes: int, n: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a share, exact (Clopper and Pearson 1934).

    `successes` of none at all still leave `1 - (1 - confidence)^(1 / n)`.
    """
    if n == 0 or successes >= n:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(successes + 1, n - successes, confidence))


def largest_drop(worse: int, better: int, n: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a paired drop: `worse` of `n` pairs lost, `better` gained.

    The larger of two bounds. The normal one of the mean difference, `(worse - better) / n + z s /
    sqrt(n)`, is what counts where many pairs differ. Where few do its spread `s` is an accident: it
    says that nothing can be lost where nothing differed. The exact bound of as many losses without
    any gain cannot be undercut: gains that losses made up for only add to the spread.

    Returns:
        a share of the pairs, at most 1.
    """
    if n == 0:
        return 1.0
    drop = (worse - better) / n
    spread = math.sqrt(((worse + better) / n - drop * drop) * n / (n - 1)) if n > 1 else 0.0
    normal = drop + NormalDist().inv_cdf(confidence) * spread / math.sqrt(n)
    return min(1.0, max(normal, highest_share(max(0, worse - better), n, confidence)))


def shown_drop(n: int, limit: float, confidence: float = 0.95) -> float:
    """The drop to hold `largest_drop` of `n` pairs against where `limit` is allowed.

    That is `limit`, or what so few pairs can show at best, where that is more: then as much is
    asked of them as of the fewest that could show `limit`, which is that hardly a pair is lost.
    """
    return max(limit, largest_drop(0, 0, n, confidence))


def least_examples(drop: float, confidence: float = 0.95) -> int | None:
    """How many pairs bound a drop by `drop` where none differs; None: no number of them does."""
    if drop <= 0:
        return None
    return 1 if drop >= 1 else math.ceil(math.log(1 - confidence) / math.log1p(-drop))
