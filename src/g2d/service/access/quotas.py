"""How much each identity may ask: inputs, bytes and connections, over all its addresses."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from g2d.service.access.policy import Quota
from g2d.service.http.protocol import RequestError
from g2d.service.http.types import Message, Receive

if TYPE_CHECKING:
    from g2d.service.access.links import Link

_KEPT = 10_000  # names remembered: the least recent is forgotten, and has a full bucket


class Rates:
    """Token buckets by name, each with a rate a second and a burst of its own.

    Args:
        clock: says the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str, tokens: float, rate: float, burst: float) -> float:
        """Return 0 if there are enough tokens, else the seconds until there will be; take none."""
        left, _ = self._now(name, rate, burst)
        return max(0.0, (min(tokens, burst) - left) / rate)

    def take(self, name: str, tokens: float, rate: float, burst: float) -> float:
        """Take tokens if there are enough and return 0, else the seconds until there will be.

        More than `burst` pass with a full bucket, and empty it below zero.
        """
        left, now = self._now(name, rate, burst)
        needed = min(tokens, burst)
        enough = left >= needed
        self._left[name] = (left - tokens if enough else left, now)
        self._left.move_to_end(name)
        if len(self._left) > _KEPT:
            self._left.popitem(last=False)
        return 0.0 if enough else (needed - left) / rate

    def _now(self, name: str, rate: float, burst: float) -> tuple[float, float]:
        now = self.clock()
        left, since = self._left.get(name, (burst, now))
        return min(burst, left + (now - since) * rate), now


class Quotas:
    """Takes what identities use; refuses with a 429 that says when to come again."""

    def __init__(self) -> None:
        self._queries, self._bytes = Rates(), Rates()
        self._under_way: dict[str, int] = {}
        self._links: dict[str, set[Link]] = {}

    def charge(self, name: str, quota: Quota, tokens: float) -> None:
        """Take requests and inputs."""
        if quota.queries and tokens > 0:
            wait = self._queries.take(name, tokens, quota.queries, quota.burst)
            if wait > 0:
                raise _over("queries", wait)

    def body(self, name: str, quota: Quota) -> Body | None:
        """Return what counts a request's body; None: any size will do."""
        return Body(self, name, quota) if quota.bytes or quota.under_way else None

    def enter(self, name: str, quota: Quota, link: Link) -> None:
        """Count a connection for the identity that asks on it now.

        A proxy's connection is one identity's after the other: it is counted for the last.
        """
        if name in link.names or link.closed:
            return
        if quota.connections and len(self._links.get(name, ())) >= quota.connections:
            refused = _over("connections", 1.0)
            ends = () if link.names else (CLOSE,)  # one that others ask on stays open for them
            raise RequestError(refused.status, refused.text, *refused.headers, *ends)
        self._forget(link)
        self._links.setdefault(name, set()).add(link)
        link.names.add(name)

    def leave(self, link: Link) -> None:
        """Forget a connection that has ended."""
        link.closed = True
        self._forget(link)

    def _forget(self, link: Link) -> None:
        for name in link.names:
            own = self._links.get(name, set())
            own.discard(link)
            if not own:
                self._links.pop(name, None)
        link.names.clear()

    def add(self, name: str, quota: Quota, size: int) -> None:
        """Take bytes of a body that came."""
        whole = self._under_way.get(name, 0) + size
        if quota.under_way and whole > quota.under_way:
            raise _over("bytes under way", 1.0)
        if quota.bytes:
            wait = self._bytes.take(name, size, quota.bytes, quota.bytes)
            if wait > 0:
                raise _over("bytes", wait)
        self._under_way[name] = whole

    def release(self, name: str, size: int) -> None:
        """Give back bytes under way, as their request is answered."""
        left = self._under_way.get(name, 0) - size
        if left > 0:
            self._under_way[name] = left
        else:
            self._under_way.pop(name, None)


class Body:
    """Counts one request's body as it comes."""

    def __init__(self, quotas: Quotas, name: str, quota: Quota) -> None:
        self._quotas, self._name, self._quota = quotas, name, quota
        self._size = 0

    def over(self, receive: Receive) -> Receive:
        """Return a `receive` that raises a `RequestError` once the identity's bytes are used up."""

        async def counted() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            if size:
                self._quotas.add(self._name, self._quota, size)
                self._size += size
            return message

        return counted

    def release(self) -> None:
        """The request is answered."""
        self._quotas.release(self._name, self._size)


CLOSE = (b"connection", b"close")


def _over(what: str, wait: float) -> RequestError:
    text = f"over this identity's quota of {what}; send again in {wait:.1f} s"
    return RequestError(429, text, retry_after(wait))


def retry_after(wait: float) -> tuple[bytes, bytes]:
    """Return the header that says when to come again, in whole seconds."""
    return b"retry-after", b"%d" % max(1, math.ceil(wait))
