"""How much is enough: evidence that bounds how often it errs, and a table that forgets no debt.

All tests here are of the kind of Shiryaev and Roberts: `r = (r + stake) * f`, where `f` is not
negative and of mean at most 1 whatever came before, as long as nothing is wrong. Then r less all
stakes falls or stays in the mean. With an alarm and a fresh start wherever r reaches 1, the mean
number of alarms is at most the sum of all stakes: of one client's tests, or of any number together,
dependent or not. Stakes are paid from a purse into which every input pays (`Purse`). What unknown
clients begin with once `Accounts` has forgotten some, so that nobody begins at zero, is not paid.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence

BETS = (0.25, 0.5)
"""Exponents k of the bets k p^(k - 1), of mean 1 for a p that is even on (0, 1]."""

Evidence = tuple[float, ...]

NOTHING: Evidence = ()
"""Evidence of none, for any test."""

ENOUGH = 1.0
"""Evidence that raises an alarm."""

_TINY = 1e-12
_STAKE, _SHARE, _MOST = 1e-3, 1 / 50, 1.0  # of a first stake, at most; of the purse; in the purse
_SEGMENT = 512  # ranks are among so many at most: then a fresh list begins


class Ranks:
    """How low each value is among those before it: a conformal p-value (Vovk et al. 2005, 2021).

    If the values come in no particular order (exchangeably), then p-values are independent and even
    on (0, 1], whatever the values' distribution is; ties are broken by chance. Values that go on
    falling have small ones.

    Args:
        skip: p-values of the first so many values are not told: a few values in order prove
        nothing.
    """

    def __init__(self, skip: int) -> None:
        self._skip = skip
        self._values = array("d")  # a quarter of a list's memory: clients can have very many

    def add(self, value: float, chance: float) -> float | None:
        """Return the p-value of the next value, None: it is not told.

        Args:
            chance: even on (0, 1].
        """
        values = self._values
        if len(values) >= _SEGMENT:
            del values[:]  # before the next one: none is ranked in two lists, which would depend
        below = bisect_left(values, value)
        ties = bisect_right(values, value) - below
        p = (below + chance * (ties + 1)) / (len(values) + 1)
        told = len(values) >= self._skip
        insort(values, value)
        return p if told else None

    def restart(self) -> None:
        """Forget the values: what comes is of another kind."""
        del self._values[:]


def bet(evidence: Evidence, stake: float, p: Sequence[float]) -> Evidence:
    """Add p-values to evidence: one Shiryaev-Roberts step for each, and each of `BETS`."""
    return step(evidence, stake, _bets(p))


def _bets(p: Sequence[float]) -> list[float]:
    return [k * max(one, _TINY) ** (k - 1) for one in p for k in BETS]


def step(evidence: Evidence, stake: float, factors: Sequence[float]) -> Evidence:
    """Do one Shiryaev-Roberts step of each of several tests, of which evidence is the mean."""
    before = evidence or (0.0,) * len(factors)
    return tuple((r + stake) * factor for r, factor in zip(before, factors, strict=True))


def worth(evidence: Evidence) -> float:
    """What evidence is worth: the mean, of which all bounds speak."""
    return sum(evidence) / max(1, len(evidence))


class Test:
    """A test that is paid from a purse.

    Attributes:
        evidence: what it has. staked: what was paid: no less than the chance that it errs.
    """

    __slots__ = ("evidence", "staked")
    __test__ = False  # pytest takes what is called so for its own

    def __init__(self) -> None:
        self.evidence, self.staked = NOTHING, 0.0

    def add(
        self, p: Sequence[float], purse: Purse, enough: float = ENOUGH, wait: bool = False
    ) -> bool:
        """Add p-values; whether the evidence is enough, which spends it.

        Args:
            wait: it is not, whatever there is, and no more than what is enough is kept.
        """
        return self.weigh(_bets(p), purse, enough, wait)

    def weigh(
        self, factors: Sequence[float], purse: Purse, enough: float = ENOUGH, wait: bool = False
    ) -> bool:
        """Change the evidence by factors of mean 1 at most; whether it is enough, likewise."""
        stake = purse.next() if self.staked else purse.first()
        self.staked += stake
        self.evidence = step(self.evidence, stake, factors)
        if (found := worth(self.evidence)) < enough:
            return False
        if wait:
            self.evidence = tuple(enough * part / found for part in self.evidence)
            return False
        self.evidence = NOTHING
        return True


class Purse:
    """Alarms without cause that may be raised: every input pays in, every test is paid from it.

    What is staked in all is never more than `rate` times the inputs, and so is the mean number of
    alarms, if nothing is wrong. What quiet traffic has saved is staked on the next trail that looks
    like a search, a fiftieth at a time: an attacker can spend it, and then pays as he goes.

    Args:
        rate: alarms an input. held: alarms that it may raise before any input has paid: the bound
            is that much higher, once.
    """

    def __init__(self, rate: float, held: float = 0.0) -> None:
        self._rate, self.held = rate, held

    def earn(self, inputs: int) -> None:
        """Take in what inputs pay; one alarm at most is held."""
        self.held = min(_MOST, self.held + self._rate * inputs)

    def first(self) -> float:
        """Pay the first stake of a test."""
        return self._pay(min(_STAKE, max(self._rate, _SHARE * self.held)))

    def next(self, inputs: int = 1) -> float:
        """Pay a further stake: what so many inputs pay in."""
        return self._pay(self._rate * inputs)

    def _pay(self, stake: float) -> float:
        stake = min(stake, self.held)
        self.held -= stake
        return stake


class Account:
    """What is known of one client beyond its window: small, and kept for long.

    Attributes:
        evidence: of a descent, of windows that were given up. copying: of extraction. near:
            near-duplicates; they fade. series: inputs with many variants. boundaries: how many of
            those lay at a boundary. marks: the test of marks that its variants carry. usual:
        of those, how many count as usual.
    """

    __slots__ = ("boundaries", "copying", "evidence", "marks", "near", "series", "since", "usual")

    def __init__(self, evidence: Evidence, copying: float, near: float, since: float) -> None:
        self.evidence, self.copying, self.near, self.since = evidence, copying, near, since
        self.series = self.boundaries = self.usual = 0
        self.marks = Test()


class Accounts:
    """An account of each client; who is forgotten does not begin at zero again.

    Where there are too many, those that weigh least go, an eighth at a time, and whoever is not
    known begins with the largest of what has gone (as in Space-Saving, Metwally et al. 2005): no
    count is ever too low, and it is too high by at most what all have done divided by the number of
    accounts.

    Args:
        most: accounts that are kept, of some 400 bytes. now: monotonic seconds. fade: seconds in
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
            found.marks.evidence = gone.marks.evidence
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
            (max(worth(a.evidence), a.copying, worth(a.marks.evidence)), a.boundaries, a.near, name)
            for name, a in self._kept.items()
        )
        for *_, name in weights[: max(1, self._most // 8)]:
            lost, gone = self._kept.pop(name), self._gone
            self._gone = Account(
                max(lost.evidence, gone.evidence, key=worth),
                max(lost.copying, gone.copying), max(lost.near, gone.near), now,
            )  # fmt: skip
            self._gone.marks.evidence = max(lost.marks.evidence, gone.marks.evidence, key=worth)

    def _let_fade(self, account: Account, now: float) -> None:
        if account.near:
            account.near *= math.exp(-max(0.0, now - account.since) / self._fade)
        account.since = now
