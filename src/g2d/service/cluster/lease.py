"""What coordinator and replicas agree on: leases, and when a replica may answer. Pure; no clock.

A replica asks again and again (a long poll). What it hears holds for `Terms.lease` seconds from the
moment that it *asked*, on its own clock, so neither latency nor a skew of clocks extends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from g2d.errors import SettingsError
from g2d.rotation.events import Event

LEAST_LEASE, MOST_LEASE = 2.0, 10.0
"""Seconds of a lease that is chosen from the rotation period."""
LEAST_GIVEN = 0.5
"""Seconds of a lease that an operator may choose."""
_REMEMBERED = 10_000  # replicas that are counted; those that were replaced are forgotten


@dataclass(frozen=True)
class Terms:
    """Seconds that coordinator and replicas keep to.

    Attributes:
        lease: how long a replica answers without hearing that its generation is live. beat: how
            long the coordinator holds a poll if nothing happens. retry: wait after a poll that
            failed. prepare: how long a commit waits for replicas that have not loaded the spare.
    """

    lease: float = MOST_LEASE
    beat: float = MOST_LEASE / 4
    retry: float = MOST_LEASE / 20
    prepare: float = MOST_LEASE / 2

    @property
    def patience(self) -> float:
        """How long a replica waits for a poll: half a lease, so that one may be lost."""
        return 2.0 * self.beat

    @classmethod
    def of(cls, every: float, lease: float = 0.0) -> Terms:
        """Choose terms for a rotation period (0: on demand): a lease is at most half of it.

        Waiting for the slowest (half a lease) and the lease of one that hears nothing then end
        within the period. Below a period of 4 s the lease stays 2 s: choose a longer period.

        Raises:
            SettingsError: a lease was given that polls over a network cannot renew in time.
        """
        if lease and lease < LEAST_GIVEN:
            raise SettingsError(f"the lease is {lease:g} s, expected {LEAST_GIVEN:g} s or more")
        lease = lease or (min(MOST_LEASE, max(LEAST_LEASE, every / 2)) if every else MOST_LEASE)
        return cls(lease, lease / 4, lease / 20, lease / 2)


@dataclass(frozen=True)
class ReplicaReport:
    """What a replica says with each poll.

    Attributes:
        term, sequence, event: of the update that it heard last. loaded: its warm spare. refused:
            why it did not take an announced generation, by number. inputs: answered since it
            began; a poll that seemed lost may arrive late, so a difference would count twice.
    """

    replica: str
    term: str = ""
    sequence: int = -1
    event: int = 0
    live: int = 0
    loaded: int = 0
    refused: Mapping[int, str] = field(default_factory=dict)
    inputs: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnnouncedGeneration:
    """A generation that replicas may load: the SHA-256 of its manifest, and where its bytes are."""

    number: int
    digest: str
    place: Any


@dataclass(frozen=True)
class Happened:
    """An event, and when it was, in seconds since 1970 on the coordinator's clock."""

    at: float
    event: Event


@dataclass(frozen=True)
class CoordinatorUpdate:
    """What the coordinator answers: what is live, what will be, what happened since.

    Attributes:
        term: names this coordinator's life; the numbers begin anew with it. sequence: of what
            ends a poll at once. event: of the last event.
    """

    term: str
    sequence: int
    event: int
    live: AnnouncedGeneration
    spare: AnnouncedGeneration | None = None
    events: tuple[Happened, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)


class Tally:
    """Counts each replica's inputs once, however often and late its reports arrive."""

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}

    def fresh(self, report: ReplicaReport, term: str) -> int:
        """How many inputs of a report were not counted yet, in a coordinator's life `term`.

        What a replica had answered before this life was counted by the one before, or is lost.
        """
        ours = report.term in ("", term)
        before = self._counted.pop(report.replica, 0 if ours else report.inputs)
        self._counted[report.replica] = max(before, report.inputs)
        if len(self._counted) > _REMEMBERED:
            del self._counted[next(iter(self._counted))]  # whoever reported longest ago
        return max(0, report.inputs - before)


class Follower:
    """A replica's knowledge: which generation it may answer from, and until when.

    It answers while it heard from the coordinator within the lease *and* what it has is what is
    live as far as it knows. Neither number ever falls.
    """

    def __init__(self, terms: Terms, live: int) -> None:
        self.terms, self.live, self.known = terms, live, live
        self.loaded = 0
        self.refused: dict[int, str] = {}
        self._until = float("-inf")

    def may_answer(self, now: float) -> bool:
        """Whether an answer may leave at `now`."""
        return self.live == self.known and now < self._until

    def left(self, now: float) -> float:
        """Seconds of the lease that are left."""
        return max(0.0, self._until - now)

    def hear(self, live: int, spare: int, asked: float) -> int:
        """Take an update that was asked for at `asked`; return the number to load now, 0: none.

        One of an older generation than is known comes from a coordinator over a vault that was put
        back: it extends nothing.
        """
        if live < self.known:
            return 0
        self.known = live
        self._until = max(self._until, asked + self.terms.lease)
        self._advance()
        if self.live < live:
            return live
        wanted = spare > live and spare != self.loaded and spare not in self.refused
        return spare if wanted else 0

    def load(self, number: int) -> None:
        """Note a warm spare that is verified and ready, instead of one that was given up."""
        self.loaded = number
        self.refused.pop(number, None)
        self._advance()

    def refuse(self, number: int, why: str) -> None:
        """Note that a generation could not be taken; one that is live is tried again."""
        self.refused = {n: text for n, text in self.refused.items() if n >= self.live}
        self.refused[number] = why

    def _advance(self) -> None:
        if self.loaded == self.known:
            self.live = self.known
