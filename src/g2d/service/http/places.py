"""Who is connected: a bounded table in which those that say nothing give way to new ones.

A connection is counted from its accept to the close of its descriptor, a TLS handshake included.
Knows no sockets: `door` seats them, `connection` says what they are doing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from g2d.service.http.limits import is_loopback

_GRACE = (
    0.5  # seconds that everybody has for a first request: a TLS handshake takes two round trips
)
_EVERY = 1.0  # seconds between reports
_SILENT, _IDLE, _BODY, _UNREAD = "silent", "idle", "body", "unread"
_BUSY = ""


class Place:
    """One connection's place. `end` closes it at once; whoever owns the descriptor sets it."""

    __slots__ = ("_doing", "_places", "client", "end", "since")

    def __init__(self, places: Places, client: str, now: float) -> None:
        self._places, self._doing = places, _BUSY
        self.client, self.since = client, now
        self.end: Callable[[], object] = lambda: None

    def busy(self) -> None:
        """A whole request is here: it is answered, and gives way to nobody."""
        self._do(_BUSY)

    def idle(self) -> None:
        """It was answered; the next request may never come."""
        self._wait(_IDLE)

    def body(self) -> None:
        """A part of a request is still to come."""
        self._wait(_BODY)

    def unread(self) -> None:
        """Its client does not keep up with reading what it is answered."""
        self._wait(_UNREAD)

    def leave(self) -> None:
        """Its descriptor is closed; a second time does nothing."""
        places = self._places
        if self in places.all:
            self._do(_BUSY)
            places.all.discard(self)
            left = places.clients[self.client] - 1
            if left:
                places.clients[self.client] = left
            else:
                del places.clients[self.client]

    def _wait(self, doing: str) -> None:
        if self._doing != doing:
            self.since = self._places.now()
            self._do(doing)

    def _do(self, doing: str) -> None:
        places = self._places
        if self._doing:
            del places.waiting[self._doing][self]
        self._doing = doing if self in places.all else _BUSY
        if self._doing:
            places.waiting[doing][self] = None


class Places:
    """The table. All of it belongs to one event loop.

    Args:
        most: connections at once. share: those of one client, but of loopback, where a proxy may
            stand for everybody. tell: called with (open, gave way, refused) once a second at most
            while connections give way or are refused; the numbers are of the time since.
        count: called with why, for each of these.
    """

    def __init__(
        self,
        most: int,
        share: int,
        tell: Callable[[int, int, int], None] = lambda *_: None,
        count: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._share, self._tell, self._count = most, share, tell, count
        self.now = now
        self.all: set[Place] = set()
        self.clients: dict[str, int] = {}
        # Ordered: the first of each has waited longest.
        self.waiting: dict[str, dict[Place, None]] = {
            doing: {} for doing in (_SILENT, _IDLE, _BODY, _UNREAD)
        }
        self._gone, self._refused, self._told = 0, 0, -math.inf

    def room(self, client: str) -> float:
        """Make room for one more; return 0 if there is some, else the seconds until there may be.

        Who never asked gives way first; if there is none, of those that are most, idle after an
        answer, with their body under way or without reading, who has waited longest: a crowd of one
        kind costs others nothing. Each has half a second. Infinite: all are being answered, or all
        of this client's, which has its share.
        """
        if self.clients.get(client, 0) >= self._share and not is_loopback(client):
            each = (p for line in self.waiting.values() for p in line if p.client == client)
            if (own := next(each, None)) is None:
                return math.inf
            self._give_way(own, "share")
        if len(self.all) < self._most:
            return 0.0
        wait, most = math.inf, max(self.waiting, key=lambda why: len(self.waiting[why]))
        for why in (_SILENT, most):
            for first in self.waiting[why]:
                wait = first.since + _GRACE - self.now()
                if wait <= 0:
                    self._give_way(first, why)
                    return 0.0
                break
        return max(1e-3, wait)

    def take(self, client: str) -> Place:
        """Seat a connection for which there is room; it has not asked yet."""
        place = Place(self, client, self.now())
        self.all.add(place)
        self.clients[client] = self.clients.get(client, 0) + 1
        place._do(_SILENT)
        return place

    def refused(self, why: str) -> None:
        """Count a connection that got no place."""
        self._refused += 1
        self._report(why)

    def failed(self, why: str) -> None:
        """Count a connection of which nothing came; a probe of a port is one, and no news."""
        self._count(why)

    def _give_way(self, place: Place, why: str) -> None:
        place.leave()
        place.end()
        self._gone += 1
        self._report(why)

    def _report(self, why: str) -> None:
        self._count(why)
        if self.now() - self._told >= _EVERY:
            self._tell(len(self.all), self._gone, self._refused)
            self._gone, self._refused, self._told = 0, 0, self.now()
