"""The judgement on a suspect: whom it was made from, in which shares; or that nobody is accused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from g2d.core.types import Array
from g2d.protect.trace.null import Null, excess
from g2d.protect.trace.regression import Likeness, shares

ACCUSED = 1e-6
"""The p-value, after Bonferroni over all that might be named, from which on one is accused."""

_FEWEST = 3  # scores below zero, for a null of one kind

GENERATION, MEMBER, EARLY, BASE = "generation", "member", "early checkpoint", "base"
UNRELEASED, UNTRAINED = "unreleased", "untrained"
NAMELESS = (UNRELEASED, UNTRAINED)
"""Networks that only show what is common: another basin's, and untrained ones."""


@dataclass(frozen=True, order=True)
class Named:
    """A network of the vault: what it is, and its number among those."""

    kind: str
    number: int

    def __str__(self) -> str:
        return {
            MEMBER: f"member {self.number} of the population",
            EARLY: f"basin {self.number}'s early checkpoint",
            BASE: "the base",
        }.get(self.kind, f"{self.kind} {self.number}")


@dataclass(frozen=True)
class Candidate:
    """What a suspect has of one network.

    Attributes:
        cosine: of residuals about the group's mean. score: of what no other network explains, in
            standard errors; it is tested. needed: the least score for an accusation.
        p: after Bonferroni. share: how much of it is in the suspect, of those accused; else 0.
    """

    who: Named
    cosine: float
    score: float
    needed: float
    p: float
    share: float = 0.0

    def record(self) -> dict[str, Any]:
        """Plain values."""
        numbers = asdict(self) | {"who": str(self.who)}
        numbers["needed"] = min(self.needed, 1e300)  # JSON has no infinity
        return {"kind": self.who.kind, "number": self.who.number, **numbers}


@dataclass(frozen=True, eq=False)
class Group:
    """Networks that lie near one another, and a suspect's likeness with them.

    `apart`: the suspect is no nearer than networks that were trained independently; it was made
    from none of these.
    """

    names: tuple[Named, ...]
    likeness: Likeness
    apart: bool = False

    def scores(self, kind: str | None = None) -> Array:
        """Of all networks, or of those of a kind."""
        return self.likeness.score[self._of(kind)]

    def left_out(self, kind: str | None = None) -> list[tuple[Array, Array]]:
        """For each generation, as if nobody knew it: scores of all others, of generations alone.

        Or both times of others of a kind.
        """
        rows = self.likeness.between[self._of(GENERATION)]
        among, tested = self._of(kind), self._of(kind or GENERATION)
        there = [~np.isnan(row) for row in rows]
        return [(row[t & among], row[t & tested]) for row, t in zip(rows, there, strict=True)]

    def _of(self, kind: str | None) -> Array:
        return np.array([kind in (None, name.kind) for name in self.names])


@dataclass(frozen=True)
class Verdict:
    """Candidates by p-value, the likest first; `accused` of them; `tests`: how many were judged."""

    candidates: tuple[Candidate, ...]
    accused: tuple[Candidate, ...]
    tests: int

    @property
    def generations(self) -> tuple[int, ...]:
        """Numbers of the generations that the suspect was made from, ascending."""
        return tuple(sorted(c.who.number for c in self.accused if c.who.kind == GENERATION))

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "verdict": str(self),
            "generations": list(self.generations),
            "accused": [candidate.record() for candidate in self.accused],
            "tests": self.tests,
            "accused_at": ACCUSED,
            "candidates": [candidate.record() for candidate in self.candidates],
        }

    def __str__(self) -> str:
        if not self.accused:
            return self._nobody()
        if len(self.accused) == 1:
            only = self.accused[0]
            rest = "" if only.who.kind in (GENERATION, BASE) else ", and of no generation"
            return f"the suspect was made from {only.who} ({shown(only.p)}){rest}"
        parts = [f"{c.who} ({c.share:.0%}, {shown(c.p)})" for c in self.accused]
        return f"the suspect is a soup of {', '.join(parts[:-1])} and {parts[-1]}"

    def _nobody(self) -> str:
        if not self.candidates:
            return "no accusation: the vault has no network left to compare with"
        best = self.candidates[0]
        why = f"the likest is {best.who}, {shown(best.p)}, and {ACCUSED:g} or less is needed"
        if not any(c.needed < np.inf for c in self.candidates):
            why = f"there are too few networks to judge by; the likest is {best.who}"
        return f"no accusation: {why}"


def judge(*comparisons: Sequence[Group], closed: bool = True) -> Verdict:
    """Judge a suspect against all networks of all groups that may be named.

    Every one is tested in each comparison, against two nulls: of all networks and of those of its
    kind. P-values are multiplied by the number of all these tests (Bonferroni).

    Args:
        comparisons: the same groups, compared in different ways: with noise by tensor, which tells
            the parts of a soup; by direction, which tells what was trained on. Shares are the
            first one's.
        closed: the vault knows every generation that ever was. Else the suspect may be one that
            nobody knows any more, and shares more with its like than others do (`null.excess`).
    """
    groups = comparisons[0]
    tests = sum(name.kind not in NAMELESS for group in groups for name in group.names)
    looks = tests * len(comparisons)
    ways = [
        [_candidates(group, [o for o in way if o is not group], looks, closed) for group in way]
        for way in comparisons
    ]
    found = [[_likest(same) for same in zip(*own, strict=True)] for own in zip(*ways, strict=True)]
    accused = [
        with_share
        for group, own in zip(groups, found, strict=True)
        for with_share in _with_shares(group, [c for c in own if c.p <= ACCUSED])
    ]
    named = {candidate.who for candidate in accused}
    rest = [c for own in found for c in own if c.who not in named]
    order = sorted((*accused, *rest), key=lambda c: (c.p, -c.score))
    return Verdict(tuple(order), tuple(sorted(accused, key=lambda c: (-c.share, c.p))), tests)


def shown(p: float) -> str:
    """A p-value for people."""
    return "p < 1e-300" if p < 1e-300 else f"p = {p:.2g}"


def _likest(same: Sequence[Candidate]) -> Candidate:
    """What counts of one network in several comparisons: where it is likest."""
    return min(same, key=lambda c: (c.p, -c.score / c.needed))


def _candidates(group: Group, others: Sequence[Group], looks: int, closed: bool) -> list[Candidate]:
    likeness, found = group.likeness, []
    whole = _null(group, others, None, closed)
    kinds = {name.kind for name in group.names} - set(NAMELESS)
    nulls = {
        kind: (whole, _null(group, others, kind, closed) if _tells(group, kind) else whole)
        for kind in kinds
    }
    for i, name in enumerate(group.names):
        if name.kind in NAMELESS:
            continue
        score, own = float(likeness.score[i]), nulls[name.kind]
        times = looks * len(own)
        p = 1.0 if group.apart else min(1.0, times * min(float(null.p(score)) for null in own))
        needed = min(null.needed(ACCUSED / times) for null in own)
        found.append(Candidate(name, float(likeness.cosine[i]), score, needed, p))
    return found


def _tells(group: Group, kind: str) -> bool:
    """Whether enough of a kind score below zero for its own null.

    Of a soup of nearly all generations of a basin few are left, and where all of these score above
    zero nothing of the suspect's own says how far chance carries: other basins know no better.
    """
    return int((group.scores(kind) < 0).sum()) >= _FEWEST


def _null(group: Group, others: Sequence[Group], kind: str | None, closed: bool) -> Null:
    """What the scores of all networks say of chance, or those of one kind.

    Training on carries every copy away from members in much the same way, which says nothing of
    generations; yet where it does not, more networks tell chance better. So both are asked, and
    count as two tests.
    """
    null = Null.fit(group.scores(kind), [other.scores(kind) for other in others])
    if closed:
        return null
    left_out = [row for each in (group, *others) for row in each.left_out(kind)]
    return null.wider(excess(left_out, null.freedom))


def _with_shares(group: Group, accused: list[Candidate]) -> list[Candidate]:
    places = {name: i for i, name in enumerate(group.names)}
    found = shares(group.likeness, [places[c.who] for c in accused]) if accused else []
    return [replace(c, share=share) for c, share in zip(accused, found, strict=True)]
