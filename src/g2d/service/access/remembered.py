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
        self._kept: dict[bytes, tuple[Caller, float, Policy, Keys | None]] = {}

    def find(self, given: bytes, policy: Policy, keys: Keys | None, address: str) -> Caller | None:
        """Return who sends this header, if nothing has changed since that was found out."""
        kept = self._kept.get(sha256(given).digest())
        if kept is None:
            return None
        caller, until, former, former_keys = kept
        if policy is not former or keys is not former_keys or time.time() >= until:
            return None
        return caller if caller.address == address else caller._replace(address=address)

    def keep(
        self, given: bytes, policy: Policy, keys: Keys | None, caller: Caller, until: float
    ) -> None:
        """Remember what was verified; it holds until then."""
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        self._kept[sha256(given).digest()] = (caller, until, policy, keys)
