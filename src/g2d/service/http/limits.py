"""Limits: who one client is, a token bucket for each, and the admin's token. Knows no HTTP."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from functools import lru_cache

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
        left, since = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        needed = min(tokens, self._burst)
        enough = left >= needed
        self._left[client] = (left - tokens if enough else left, now)
        if len(self._left) > _CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if enough else (needed - left) / self._rate


class AdminToken:
    """Knows the admin's token by its SHA-256 alone; compares in constant time."""

    def __init__(self, token: bytes | None) -> None:
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
