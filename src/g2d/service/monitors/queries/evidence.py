"""How much is enough: evidence that bounds how often it errs, and a table that forgets no debt.

All tests here are of the kind of Shiryaev and Roberts: `r = (r + 1) * f`, where `f` is non-negative
and of mean at most 1 whatever came before, as long as nothing is wrong. Then `r - t` falls or stays
in the mean, and with an alarm and a fresh start wherever `r` reaches `c`, the mean number of alarms
in t steps is at most `t / c`: of one client or of any number together, dependent or not.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable

BETS = (0.25, 0.5)
"""Exponents k of the bets k p^(k - 1), of mean 1 for a p that is even on (0, 1]."""

NOTHING = (0.0,) * len(BETS)
"""Evidence of none."""

_SEGMENT = 512  # ranks are among so many at most: then a fresh list begins


class Ranks:
    """How low each value is among those before it: a conformal p-value (Vovk et al. 2005, 2021).

    If the values come in no particular order (exchangeably), then p-values are independent and even
    on (0, 1], whatever the values' distribution is; ties are broken by chance. Values that go on
    falling have small ones.

    Args:
        skip: p-values of the first so many values are not told: a few values in order prove nothing.
    """

    def __init__(self, skip: int) -> None:
        self._skip = skip
        self._values: list[float] = []

    def add(self, value: float, chance: float) -> float | None:
        """Return the p-value of the next value, None: it is not told.

        Args:
            chance: even on (0, 1].
        """
        values = self._values
        below = bisect_left(values, value)
        ties = bisect_right(values, value) - below
        p = (below + chance * (ties + 1)) / (len(values) + 1)
        told = len(values) >= self._skip
        if len(values) >= _SEGMENT:
            values.clear()
        insort(values, value)
        return p if told else None

    def restart(self) -> None:
        """Forget the values: what comes is of another kind."""
        self._values.clear()


def bet(evidence: tuple[float, ...], p: float) -> tuple[float, ...]:
    """Add a p-value to evidence: one Shiryaev-Roberts step for each of `BETS`."""
    return tuple((r + 1) * k * p ** (k - 1) for r, k in zip(evidence, BETS, strict=True))


def worth(evidence: tuple[float, ...]) -> float:
    """What evidence is worth: the mean over `BETS`, of which all bounds speak."""
    return sum(evidence) / len(evidence)


class Account:
    """What is known of one client beyond its window: small, and kept for long.

    Attributes:
        evidence: of a descent. copying: of extraction. near: near-duplicates; they fade.
    """

    __slots__ = ("copying", "evidence", "near", "since")

    def __init__(
        self, evidence: tuple[float, ...], copying: float, near: float, since: float
    ) -> None:
        self.evidence, self.copying, self.near, self.since = evidence, copying, near, since


class Accounts:
    """An account of each client; who is forgotten does not begin at zero again.

    Where there are too many, those that weigh least go, an eighth at a time, and whoever is not known
    begins with the largest of what has gone (as in Space-Saving, Metwally et al. 2005): no count is
    ever too low, and it is too high by at most what all have done divided by the number of accounts.

    Args:
        most: accounts that are kept, of some 300 bytes. now: monotonic seconds. fade: seconds in
            which near-duplicates fall to 1/e.
    """

    def __init__(self, most: int, now: Callable[[], float], fade: float = 3600.0) -> None:
        self._most, self._now, self._fade = most, now, fade
        self._kept: dict[str, Account] = {}
        self._gone = Account(NOTHING, 0.0, 0.0, now())

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, client: str) -> Account:
        """Return a client's account, as it is now."""
        now = self._now()
        found = self._kept.get(client)
        if found is None:
            if len(self._kept) >= self._most:
                self._evict(now)
            self._let_fade(self._gone, now)
            gone = self._gone
            found = Account(gone.evidence, gone.copying, gone.near, now)
            self._kept[client] = found
        self._let_fade(found, now)
        return found

    @property
    def floor(self) -> float:
        """What an unknown client's evidence begins at."""
        return worth(self._gone.evidence)

    def _evict(self, now: float) -> None:
        for account in self._kept.values():
            self._let_fade(account, now)
        weights = sorted(
            (max(worth(a.evidence), a.copying), a.near, name) for name, a in self._kept.items()
        )
        for _, _, name in weights[: max(1, self._most // 8)]:
            lost, gone = self._kept.pop(name), self._gone
            self._gone = Account(
                tuple(map(max, lost.evidence, gone.evidence)),
                max(lost.copying, gone.copying), max(lost.near, gone.near), now,
            )  # fmt: skip

    def _let_fade(self, account: Account, now: float) -> None:
        if account.near:
            account.near *= math.exp(-max(0.0, now - account.since) / self._fade)
        account.since = now
