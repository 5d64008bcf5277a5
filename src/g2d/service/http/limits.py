"""Limits: who one client is, a token bucket for each, and the admin's token. Knows no HTTP."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from collections import OrderedDict
from functools import lru_cache

from g2d.errors import SettingsError

_CLIENTS = 10_000  # addresses remembered: the least recent is forgotten, and has a full bucket


@lru_cache(_CLIENTS)
def client_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, an IPv6 network of 64 bits."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(found) >> 64 << 64)}/64"


def is_loopback(client: str) -> bool:
    """Whether a client, as `client_of` names it, is this machine: its proxy may be everybody."""
    return client.startswith("127.") or client == "::/64"


class Buckets:
    """A token bucket for each client: `rate` tokens a second, at most `burst`; rate 0: no limit."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, tokens: float = 1.0, now: float | None = None) -> float:
        """Take tokens; return 0 if there were enough, else the seconds until there will be.

        A request of more than `burst` tokens passes with a full bucket, and empties it below zero.
        """
        if not self._rate:
            return 0.0
        client = client_of(client)
        now = time.monotonic() if now is None else now
        left = self._now_left(client, now)
        self._left.pop(client, None)
        needed = min(tokens, self._burst)
        enough = left >= needed
        self._left[client] = (left - tokens if enough else left, now)
        if len(self._left) > _CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if enough else (needed - left) / self._rate

    def wait(self, client: str, now: float) -> float:
        """Seconds until one token could be taken; takes none."""
        return max(0.0, 1.0 - self._now_left(client_of(client), now)) / self._rate

    def _now_left(self, client: str, now: float) -> float:
        left, since = self._left.get(client, (self._burst, now))
        return min(self._burst, left + (now - since) * self._rate)


class AdminToken:
    """Knows the admin's token by its SHA-256 alone; compares in constant time.

    Raises:
        SettingsError: the token holds what no header may, a line's end say: nobody could give it.
    """

    def __init__(self, token: bytes | None) -> None:
        if token is not None and not re.fullmatch(rb"[ -~]+", token):
            raise SettingsError("the admin token must be one line of printable ASCII characters")
        self._digest = None if token is None else hashlib.sha256(token).digest()

    @property
    def open(self) -> bool:
        """Whether there is a token at all; without one, admin calls are off."""
        return self._digest is not None

    def admits(self, authorization: bytes) -> bool:
        """Whether an Authorization header is `Bearer` and the token."""
        kind, _, token = authorization.partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        right = hmac.compare_digest(given, self._digest or bytes(32))
        return right and kind.lower() == b"bearer" and self.open
