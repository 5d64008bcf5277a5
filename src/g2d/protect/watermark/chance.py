"""What hits are worth: the exact binomial tail of a network that knows nothing of the key.

Labels are independent of everything, uniform over the classes, and fixed by the key, so that the
hits of any network made without the key are Binomial(n, 1 / classes), whatever it answers.
"""

from __future__ import annotations

import math

from g2d.errors import SettingsError

LIKELY = 2.0**-64
"""The p-value below which a network is called marked, after Bonferroni."""


def p_value(hits: int, n: int, classes: int, suspects: int = 1) -> float:
    """P(at least `hits` of `n` labels by chance), times `suspects` (Bonferroni), at most 1.

    Raises:
        SettingsError: `hits` lies outside [0, n], or there are fewer than two classes.
    """
    if not 0 <= hits <= n or classes < 2 or suspects < 1:
        raise SettingsError(
            f"{hits} hits of {n} triggers over {classes} classes and {suspects} suspects: expected"
            " hits from 0 to n, at least two classes and at least one suspect"
        )
    # In whole numbers: exact, the same everywhere, and no library has to be loaded.
    ways = sum(math.comb(n, k) * (classes - 1) ** (n - k) for k in range(hits, n + 1))
    return min(1.0, suspects * ways / classes**n)


def needed_hits(n: int, classes: int, p: float = LIKELY, suspects: int = 1) -> int | None:
    """The fewest hits of `n` with a p-value below `p`; None: not even all of them are enough."""
    if p_value(n, n, classes, suspects) >= p:
        return None
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if p_value(middle, n, classes, suspects) < p:
            high = middle
        else:
            low = middle + 1
    return low


def least_triggers(classes: int, p: float = LIKELY, suspects: int = 1) -> int:
    """The fewest triggers of which all hits have a p-value below `p`."""
    n = max(1, math.floor(-math.log2(p / suspects) / math.log2(classes)) - 1)
    while needed_hits(n, classes, p, suspects) is None:
        n += 1
    return n
