"""A budget over the bytes of all bodies under way: one that never comes whole holds memory.

Where it is spent, the body that is under way for longest gives way, and its sender is told to come
again; so a crowd of bodies short of a byte does not keep others out. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from g2d.service.http.limits import is_loopback

_LEAST = 256 << 20  # bytes of the budget, unless four of the largest bodies need more
_NOTABLE = 16 << 20  # bytes that, once they are free, are given back to the system


class OverBudgetError(Exception):
    """There is no room for a body. `own`: its client's others are what fills it."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own


class Body:
    """One body under way; closing it gives its bytes back.

    Attributes:
        whole: it has arrived, and is parsed or waits for it; then it does not give way.
    """

    __slots__ = ("_bodies", "_limit", "client", "over", "size", "whole")

    def __init__(self, bodies: Bodies, client: str, limit: asyncio.Timeout) -> None:
        self._bodies, self._limit, self.client = bodies, limit, client
        self.size, self.whole = 0, False
        self.over: OverBudgetError | None = None

    def add(self, size: int) -> None:
        """Count bytes that have come.

        Raises:
            OverBudgetError: they do not fit, and nobody gives way.
        """
        self._bodies.add(self, size)

    def arrived(self) -> None:
        """It is whole."""
        self.whole = True
        self._bodies.under_way.pop(self, None)

    def close(self) -> None:
        """Its bytes are free."""
        self._bodies.free(self)

    def give_way(self, own: bool) -> None:
        """End it: its bytes are counted as free at once, and its request's time is over."""
        self.over = OverBudgetError(own)
        self._bodies.free(self)
        if not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self.size:
            self.close()


class Bodies:
    """All bodies under way. Belongs to one event loop.

    Args:
        most: bytes of all, half of them one client's (of loopback, where a proxy may stand for
            everybody, all); 0: 256 MiB, or four of the largest. largest: bytes of one.
    """

    def __init__(self, most: int, largest: int) -> None:
        self._most = max(most or max(_LEAST, 4 * largest), largest)
        self._share = max(self._most // 2, largest)
        self.under_way: dict[Body, None] = {}  # in the order in which they began to hold bytes
        self.held, self._peak = 0, 0
        self._clients: dict[str, int] = {}

    def open(self, client: str, limit: asyncio.Timeout) -> Body:
        """Begin a body of a client, as `client_of` names it; `limit`: its request's time."""
        return Body(self, client, limit)

    def add(self, body: Body, size: int) -> None:
        """Count bytes; see `Body.add`."""
        if not body.size:
            self.under_way[body] = None
        body.size += size
        self.held += size
        self._clients[body.client] = self._clients.get(body.client, 0) + size
        apart = not is_loopback(body.client)
        while apart and self._clients[body.client] > self._share:
            own = (other for other in self.under_way if other.client == body.client)
            self._end(next(own), body, True)
        while self.held > self._most:
            self._end(next(iter(self.under_way)), body, False)
        self._peak = max(self._peak, self.held)

    def free(self, body: Body) -> None:
        """Take a body's bytes out of the count."""
        self.under_way.pop(body, None)
        left = self._clients.get(body.client, 0) - body.size
        self.held, body.size = self.held - body.size, 0
        if left:
            self._clients[body.client] = left
        else:
            self._clients.pop(body.client, None)

    def receded(self) -> bool:
        """Whether much was held and is free by now; said once."""
        if self._peak < _NOTABLE or self.held > self._peak // 4:
            return False
        self._peak = self.held
        return True

    def _end(self, other: Body, body: Body, own: bool) -> None:
        if other is body:
            self.free(body)
            raise OverBudgetError(own)
        other.give_way(own)
