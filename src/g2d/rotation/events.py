"""What happens to a rotation, one frozen dataclass an event. No HTTP, no torch.

What only a service tells is in `service.http.events`; who logs, counts and publishes them is
`service.http.event_log`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self


@dataclass(frozen=True)
class Event:
    """Something that happened; its name and its fields are what logs and listeners are told.

    One that is not `public` is logged and counted, and never reaches whoever listens: any client
    could cause it as often as it likes, and drown the rest.
    """

    name: ClassVar[str]
    public: ClassVar[bool] = True

    def facts(self) -> dict[str, Any]:
        """Return the fields as JSON has them, in order; those that are None are left out."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
            if value is not None
        }

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Make an event from its `facts()`; a `TypeError` says which is missing or unknown."""
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in facts.items()})


Tell = Callable[[Event], None]
"""Called with everything that happens, from any thread."""


def silent(_: Event) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Spare(Event):
    """A generation is made and loaded; `seconds` says what its making and its loading took."""

    name = "spare"
    generation: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Committed(Event):
    """The ledger says that a generation is live; it answers next."""

    name = "committed"
    generation: int


@dataclass(frozen=True)
class Swap(Event):
    """A generation answers from now on, in the place of `before`."""

    name = "swap"
    generation: int
    before: int
    reasons: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Refused(Event):
    """A generation was not what it should be, and is not served; `retry` is in seconds."""

    name = "refused"
    generation: int | None = None
    reason: str
    text: str
    live: int | None = None
    retry: float | None = None


@dataclass(frozen=True)
class Failed(Event):
    """No spare could be made; `live` goes on, and the next try is in `retry` seconds."""

    name = "failed"
    reason: str
    text: str
    live: int
    retry: float


Level = Literal["notice", "warning", "critical"]
"""How urgent an alarm is, in words of syslog (RFC 5424)."""

_OF_QUERIES, _FROM_OUTSIDE = frozenset({"query_attack"}), frozenset({"drift", "other"})


@dataclass(frozen=True)
class Alarm(Event):
    """A monitor has seen something; the kinds are few, for each is a label of a metric.

    Attributes:
        client: whose queries it is about. evidence: what a monitor of queries has measured, numbers
            and short texts; None: the alarm is the service's own.
    """

    name = "alarm"
    kind: str
    text: str
    level: Level = "warning"
    client: str | None = None
    evidence: Mapping[str, float | str] | None = None

    @property
    def closed(self) -> bool:
        """Whether no client may hear of it: it would tell an attacker what is seen of him."""
        own = self.client is None and self.evidence is None
        return not own or self.kind in _OF_QUERIES

    @property
    def suspect(self) -> str:
        """The client that is under suspicion; "": nobody. A notice is no suspicion."""
        return (self.client or "") if self.level != "notice" else ""

    @property
    def bought(self) -> bool:
        """Whether queries may have caused it, so that what it may cause needs a bound."""
        return self.closed or self.kind in _FROM_OUTSIDE

    def facts(self) -> dict[str, Any]:
        """As every event's; a plain warning says no level, as before there were levels."""
        found = super().facts()
        if self.level == "warning":
            del found["level"]
        return found


@dataclass(frozen=True)
class Accepted(Event):
    """Somebody has accepted a vault deliberately that is older than what was known of it."""

    name = "accepted"
    text: str


@dataclass(frozen=True)
class OlderCopy(Event):
    """What is served is a copy of a vault, and behind what another copy of it has reached here."""

    name = "older copy"
    text: str


@dataclass(frozen=True)
class Paused(Event):
    """Rotation is suspended."""

    name = "paused"


@dataclass(frozen=True)
class Resumed(Event):
    """Rotation goes on."""

    name = "resumed"
