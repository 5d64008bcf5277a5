"""How monitors of queries raise alarms, and how often: cool-downs that no attacker can flood.

What an alarm may cause is bounded elsewhere (`rotation.triggers.AlarmBudget`); who may hear of it
is `rotation.events.Alarm.closed`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

from g2d.rotation.events import Level

Evidence = Mapping[str, float | str]
_TRACKED = 4096  # kinds and clients whose cool-down is remembered
_EARLY = 64  # alarms that may wait until there is a rotation
_FACTS, _CHARACTERS = 16, 80  # of an evidence, and of a text in it
_OTHERS = "\0others"  # who is not tracked: no client's name
_LEVELS: tuple[Level, ...] = ("notice", "warning", "critical")


class RaiseAlarm(Protocol):
    """How an observer says what it has seen."""

    def __call__(
        self,
        kind: str,
        text: str,
        rotate: bool = True,
        *,
        level: Level = "warning",
        client: str = "",
        evidence: Evidence | None = None,
    ) -> None:
        """Tell the operator, and rotate away unless `rotate` is False.

        Clients never hear of it: only who gives the admin token, or has the role `observe`.

        Args:
            kind: one of a few words, for it is a label of a metric. text: nothing of an input's.
            level: "notice", "warning" or "critical". client: whose queries it is about, as
                observers get it; "": nobody's. evidence: what was measured, numbers and short
                texts, nothing of an input's.
        """
        ...


class _Told(NamedTuple):
    until: float
    weight: int
    held: int


class Cooldown:
    """Lets an alarm of a kind about a client through once in a while, and counts the others.

    One that weighs more than what was told is told at once: a notice holds no search back.
    Bounded memory: where more clients alarm than it tracks, all new ones of a kind count as one. So
    many accounts do not buy many alarms, a full table forgets no cool-down that still runs, and
    alarms about nobody, such as of drift, have a place of their own.
    """

    def __init__(
        self, seconds: float, now: Callable[[], float] = time.monotonic, most: int = _TRACKED
    ) -> None:
        self._seconds, self._now, self._most = seconds, now, most
        self._told: dict[tuple[str, str], _Told] = {}  # the first to end comes first
        self.suppressed = 0

    def take(self, kind: str, client: str, weight: int = 0) -> int | None:
        """Return how many of these were held back since the last one; None: hold this one back."""
        now, key = self._now(), (kind, client)
        if client and key not in self._told and len(self._told) >= self._most:
            self._expire(now)
            if len(self._told) >= self._most:
                key = (kind, _OTHERS)
        told = self._told.get(key)
        if told and now < told.until and weight <= told.weight:
            self._told[key] = told._replace(held=told.held + 1)
            self.suppressed += 1
            return None
        self._told.pop(key, None)  # so that it is the last again
        self._told[key] = _Told(now + self._seconds, weight, 0)
        return told.held if told else 0

    def kept(self, most: int) -> list[tuple[str, str, float, int]]:
        """What a restart must know, the last `most`: kind, client, seconds more, and weight."""
        now = self._now()
        last = list(islice(reversed(self._told.items()), most))[::-1]
        return [(*key, told.until - now, told.weight) for key, told in last if told.until > now]

    def restore(self, kept: Iterable[tuple[str, str, float, int]]) -> None:
        """Go on where `kept` was told: nothing is held back for longer than a cool-down."""
        now = self._now()
        for kind, client, seconds, weight in sorted(kept, key=lambda one: one[2])[-self._most :]:
            key = (kind, client)
            if seconds > 0 and key not in self._told and len(self._told) < self._most:
                self._told[key] = _Told(now + min(seconds, self._seconds), weight, 0)
        self._told = dict(sorted(self._told.items(), key=lambda one: one[1].until))

    def _expire(self, now: float) -> None:
        """Forget what has ended: no more work than what was told, however many are held back."""
        while self._told and self._told[key := next(iter(self._told))].until <= now:
            del self._told[key]


class _Raised(NamedTuple):
    kind: str
    text: str
    rotate: bool
    level: Level
    client: str
    evidence: Evidence


class AlarmLine:
    """The one line from monitors to rotation; what they raise before `connect` waits."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._early: list[_Raised] = []
        self._alarm: RaiseAlarm | None = None
        self._cooldown = Cooldown(0.0)

    @property
    def suppressed(self) -> int:
        """Alarms that were held back for their cool-down."""
        return self._cooldown.suppressed

    def connect(
        self,
        alarm: RaiseAlarm,
        cooldown: float = 0.0,
        kept: Iterable[tuple[str, str, float, int]] = (),
    ) -> None:
        """Pass alarms on from now, those of a kind about a client once in `cooldown` seconds.

        Args:
            kept: what was told before a restart, as `kept` says it.
        """
        with self._mutex:
            self._cooldown, self._alarm = Cooldown(cooldown), alarm
            self._cooldown.restore(kept)
            early, self._early = self._early, []
        for raised in early:
            self._pass(raised, alarm)

    def kept(self, most: int) -> list[tuple[str, str, float, int]]:
        """What was told and cools down: see `Cooldown.kept`."""
        with self._mutex:
            return self._cooldown.kept(most)

    def restore(self, kept: Iterable[tuple[str, str, float, int]]) -> None:
        """Hold back what another service has told: see `Cooldown.restore`."""
        with self._mutex:
            self._cooldown.restore(kept)

    def __call__(
        self,
        kind: str,
        text: str,
        rotate: bool = True,
        *,
        level: Level = "warning",
        client: str = "",
        evidence: Evidence | None = None,
    ) -> None:
        """See `RaiseAlarm`."""
        # Observers are others' code: no alarm is lost for its level.
        known: Level = level if level in _LEVELS else "warning"
        raised = _Raised(kind, text, rotate, known, client, _short(evidence or {}))
        with self._mutex:
            alarm = self._alarm
            if alarm is None and len(self._early) < _EARLY:
                self._early.append(raised)
        if alarm is not None:
            self._pass(raised, alarm)

    def _pass(self, raised: _Raised, alarm: RaiseAlarm) -> None:
        with self._mutex:
            weight = 2 * _LEVELS.index(raised.level) + raised.rotate
            held = self._cooldown.take(raised.kind, raised.client, weight)
        if held is None:
            return
        evidence = {**raised.evidence, **({"held_back": held} if held else {})}
        alarm(
            raised.kind, raised.text, raised.rotate, level=raised.level, client=raised.client,
            evidence=evidence,
        )  # fmt: skip


def _short(evidence: Evidence) -> dict[str, float | str]:
    """Of evidence what may be kept: a few facts, short ones, that every reader of JSON takes."""
    few = list(evidence.items())[:_FACTS]
    return {str(key)[:_CHARACTERS]: _plain(value) for key, value in few}


def _plain(value: Any) -> float | str:
    if isinstance(value, str):
        return value[:_CHARACTERS]
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)
