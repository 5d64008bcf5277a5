"""Who sent a header that was verified before, while token, keys and access file still hold.

Most requests come with a header that came before; what it says is then not found out anew.
"""

from __future__ import annotations

import time
from hashlib import sha256

from g2d.service.access.identity import Caller
from g2d.service.access.policy import Policy
from g2d.service.access.tokens import Keys

_KEPT = 10_000  # headers; if there are more, all are found out anew


class Remembered:
    """Callers by their header, which is kept as a digest; belongs to one event loop."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[Caller, float]] = {}
        self._policy: Policy | None = None
        self._keys: Keys | None = None

    def hold_for(self, policy: Policy, keys: Keys | None) -> None:
        """Forget all if the files that they were found out by have changed."""
        if policy is not self._policy or keys is not self._keys:
            self._kept.clear()
            self._policy, self._keys = policy, keys

    def find(self, given: bytes, address: str) -> Caller | None:
        """Return who sends this header, while it holds."""
        kept = self._kept.get(sha256(given).digest())
        if kept is None or time.time() >= kept[1]:
            return None
        caller = kept[0]
        return caller if caller.address == address else caller._replace(address=address)

    def keep(self, given: bytes, caller: Caller, until: float) -> None:
        """Remember what was verified; it holds until then."""
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        self._kept[sha256(given).digest()] = (caller, until)
