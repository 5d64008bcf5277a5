"""The judgement on a suspect: whom it was made from, in which shares; or that nobody is accused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from g2d.core.types import Array
from g2d.protect.trace.null import Null
from g2d.protect.trace.residuals import Likeness, shares

ACCUSED = 1e-6
"""The p-value, after Bonferroni over all that might be named, from which on one is accused."""

GENERATION, MEMBER, EARLY, BASE = "generation", "member", "early checkpoint", "base"
UNRELEASED, UNTRAINED = "unreleased", "untrained"
NAMELESS = (UNRELEASED, UNTRAINED)
"""Networks that only show what is common: fresh draws, another basin's, untrained ones."""


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
        cosine: of residuals. partial: the same once all others have explained theirs; it is tested.
        p: after Bonferroni. share: how much of it is in the suspect, of those accused; else 0.
        needed: the least `partial` for an accusation; 1: too few networks to say.
    """

    who: Named
    cosine: float
    partial: float
    p: float
    needed: float
    share: float = 0.0

    def record(self) -> dict[str, Any]:
        """Plain values."""
        values = ("cosine", "partial", "p", "needed", "share")
        numbers = {name: float(getattr(self, name)) for name in values}
        return {"kind": self.who.kind, "number": self.who.number, **numbers}


@dataclass(frozen=True, eq=False)
class Group:
    """Networks that lie near one another, and a suspect's likeness with them.

    `closed`: every polished network that the vault ever kept is among the known ones, so that
    whatever a stranger shares with a generation is shared by members and draws as well. Where old
    generations gave up their weights, a suspect may be one of those, and generations alone show
    how alike they are.
    """

    names: tuple[Named, ...]
    likeness: Likeness
    closed: bool = True

    def null(self, of: str) -> Null:
        """The null of networks of a kind."""
        kinds = np.array([name.kind for name in self.names])
        columns = self.likeness.between[:, kinds == of]
        sample = [columns[kinds == kind].ravel() for kind in dict.fromkeys(kinds.tolist())]
        peers = len(kinds) if self.closed or of != GENERATION else int((kinds == of).sum())
        return Null.fit(sample, peers - 1)


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
        if all(c.needed >= 1.0 for c in self.candidates):
            why = (
                "there are too few networks to say what a likeness is worth; the likest is "
                f"{best.who}, cosine {best.cosine:.3f}"
            )
        return f"no accusation: {why}"


def judge(groups: Sequence[Group]) -> Verdict:
    """Judge a suspect against all networks of all groups that may be named.

    Every one is tested; the p-values are multiplied by their number (Bonferroni).
    """
    tests = sum(name.kind not in NAMELESS for group in groups for name in group.names)
    found = [_candidates(group, tests) for group in groups]
    accused = [
        with_share
        for group, own in zip(groups, found, strict=True)
        for with_share in _with_shares(group, [c for c in own if c.p <= ACCUSED])
    ]
    named = {candidate.who for candidate in accused}
    rest = [c for own in found for c in own if c.who not in named]
    order = sorted((*accused, *rest), key=lambda c: (c.p, -c.partial))
    return Verdict(tuple(order), tuple(sorted(accused, key=lambda c: (-c.share, c.p))), tests)


def shown(p: float) -> str:
    """A p-value for people."""
    return "p < 1e-300" if p < 1e-300 else f"p = {p:.2g}"


def _candidates(group: Group, tests: int) -> list[Candidate]:
    found = []
    kinds = dict.fromkeys(name.kind for name in group.names)
    for kind in (kind for kind in kinds if kind not in NAMELESS):
        null = group.null(kind)
        places = [i for i, name in enumerate(group.names) if name.kind == kind]
        p: Array = np.minimum(1.0, null.p(group.likeness.partial[places]) * tests)
        needed = null.needed(ACCUSED / tests)
        found += [
            Candidate(
                group.names[i], float(group.likeness.plain[i]), float(group.likeness.partial[i]),
                float(p[k]), needed,
            )
            for k, i in enumerate(places)
        ]  # fmt: skip
    return found


def _with_shares(group: Group, accused: list[Candidate]) -> list[Candidate]:
    places = {name: i for i, name in enumerate(group.names)}
    found = shares(group.likeness, [places[c.who] for c in accused]) if accused else []
    return [replace(c, share=share) for c, share in zip(accused, found, strict=True)]
