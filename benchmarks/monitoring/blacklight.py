"""Blacklight as published: the rival of the monitor of queries.

Li et al. 2022 (arXiv 2006.14042), with the parameters of section 6 for small images: quantisation
in steps of 50 of 255, windows of 20 values at every place, SHA-256 with a secret salt, the 50
largest distinct hashes; an input that shares 25 of them with any earlier one is an attack. Written
from the paper; memory is not bounded, as in the paper nothing is forgotten for a day.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np

WINDOW, STEP, KEPT, MATCHES = 20, 50, 50, 25


class Blacklight:
    """Says of each input in [0, 1] whether it is an attack's; remembers it."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._known: list[frozenset[int]] = []
        self._with: defaultdict[int, list[int]] = defaultdict(list)

    def attacked(self, x: np.ndarray) -> bool:
        """Judge one input (any shape)."""
        hashes = self.hashes(x)
        if len(hashes) < MATCHES:
            return False  # it can share as many with none, and none with it
        found = self._matched(hashes)
        for one in hashes:
            self._with[one].append(len(self._known))
        self._known.append(hashes)
        return found

    def _matched(self, hashes: frozenset[int]) -> bool:
        """Whether any earlier input shares enough: it has one of the rarest of them, then.

        All but `MATCHES - 1` of the hashes are looked up, for the commonest, those of a background,
        are in nearly every input: lists of them would grow with all that was ever asked.
        """
        by_rarity = sorted(hashes, key=lambda one: len(self._with[one]))
        looked = set[int]()
        for one in by_rarity[: len(hashes) - MATCHES + 1]:
            for other in reversed(self._with[one]):
                if other not in looked and len(hashes & self._known[other]) >= MATCHES:
                    return True
                looked.add(other)
        return False

    def hashes(self, x: np.ndarray) -> frozenset[int]:
        """Return the largest distinct hashes of an input's windows, of each the first 8 bytes."""
        steps = np.rint(255 * x.ravel() / STEP).astype(np.uint8)
        cut = {steps[i : i + WINDOW].tobytes() for i in range(max(1, len(steps) - WINDOW + 1))}
        made = sorted((hashlib.sha256(self._salt + one).digest()[:8] for one in cut), reverse=True)
        return frozenset(int.from_bytes(one, "big") for one in made[:KEPT])
