"""What serving policies have in common: keyed hashes, tags, and that most pin nobody.

The policies are in `policy`, the one that pins suspects in `sticky`.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_TAG = 8  # bytes of a tag; it begins with a letter, for none must be taken for a number


class KeyedPolicy:
    """What most policies have in common: nobody is pinned, and tags tell of no rotation."""

    reads = False

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def pin(self, client: str, why: str = "") -> None:
        """Do nothing: nobody has a generation of his own."""

    def release(self, client: str) -> bool:
        """Return False: nobody is pinned."""
        return False

    def held(self, retired: Sequence[int], most: int) -> tuple[int, ...]:
        """Return (): what is not live answers nobody."""
        return ()

    def apart(self, live: Sequence[int], left: Sequence[int]) -> tuple[int, ...]:
        """Return (): nobody is under suspicion."""
        return ()

    def restore(self, pins: Iterable[Mapping[str, Any]]) -> None:
        """Do nothing, as `pin`."""

    def pins(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return []: nobody is pinned."""
        return []

    def tag(self, client: str, numbers: tuple[int, ...]) -> str:
        """Return one name for each client, for good: all that are live answer it.

        Those change at each rotation. A name of theirs would publish the clock, and one of what
        has answered would help whoever searches for where the generations differ.
        """
        return self._tag(client)

    def _tag(self, client: str, *numbers: int) -> str:
        name = client.encode("utf-8", "surrogatepass")
        return "t" + self._keyed(b"tag", name, *(b"%d" % k for k in numbers))[:_TAG].hex()

    def _keyed(self, purpose: bytes, *parts: bytes) -> bytes:
        """HMAC-SHA-256 (RFC 2104) of parts, each after its length: no two lists are one text."""
        text = b"".join(b"%d:%b" % (len(part), part) for part in (purpose, *parts))
        return hmac.digest(self._secret, text, "sha256")

    def _highest(self, purpose: bytes, what: bytes, live: Sequence[int]) -> int:
        """Rendezvous hashing: of the live numbers the one whose keyed hash is highest.

        Where the oldest number leaves and a newer one comes, what this returns rises or stays: if
        it was the oldest, all others are newer; else only the newcomer can beat it. So a client's
        numbers never fall, whoever computes them: another replica, or this one after a restart.
        (Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates".)
        """
        return max(live, key=lambda number: self._keyed(purpose, what, b"%d" % number))
