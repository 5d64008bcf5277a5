"""Who guesses the admin's token is held off: by client, and all strangers together.

While a client is held off, what it sends is not looked at, right or wrong: else it could go on
guessing. So whoever shares a guesser's address is held off with him, unless the right token has
come from there before: such an address may err ten times a second. Memory is bounded.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from g2d.service.http.limits import Buckets, client_of

_FREE = 10  # wrong tokens of a client before it has to wait
_FORGET = 600.0  # seconds without a wrong one, after which they are free again
_LONGEST = 60.0  # seconds: waits are 1, 2, 4 .. of them
_STRANGERS = 10_000  # clients that are remembered; the least recent is forgotten
_FRIENDS = 1000  # those from which the right token has come


class Guesses:
    """Counts wrong tokens. All clients that never gave the right one share `rate` a second."""

    def __init__(
        self, rate: float = 20.0, burst: float = 1000.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._strangers: OrderedDict[str, tuple[int, float, float]] = OrderedDict()
        self._friends: OrderedDict[str, None] = OrderedDict()
        self._all, self._friendly = Buckets(rate, burst), Buckets(10.0, 100.0)

    def wait(self, client: str) -> float:
        """Seconds until a client is heard again; 0: it is heard now."""
        client, now = client_of(client), self._now()
        if client in self._friends:
            return self._friendly.wait(client, now)
        return max(self._strangers.get(client, (0, 0.0, 0.0))[2] - now, self._all.wait("", now), 0)

    def wrong(self, client: str) -> float:
        """Note a wrong token; return for how many seconds this client is not heard now."""
        client, now = client_of(client), self._now()
        if client in self._friends:
            self._friendly.take(client, now=now)
            return self._friendly.wait(client, now)
        count, last, _ = self._strangers.pop(client, (0, now, 0.0))
        count = 1 if now - last > _FORGET else count + 1
        wait = min(_LONGEST, 2.0 ** min(count - _FREE, 10)) if count >= _FREE else 0.0
        self._strangers[client] = (count, now, now + wait)
        if len(self._strangers) > _STRANGERS:
            self._strangers.popitem(last=False)
        self._all.take("", now=now)
        return wait

    def right(self, client: str) -> None:
        """Note that the right token came."""
        client = client_of(client)
        self._strangers.pop(client, None)
        self._friends[client] = None
        self._friends.move_to_end(client)
        if len(self._friends) > _FRIENDS:
            self._friends.popitem(last=False)
