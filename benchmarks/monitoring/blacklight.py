"""Blacklight as published: the rival of the monitor of queries.

Li et al. 2022 (arXiv 2006.14042), with the parameters of section 6 for small images: quantisation
in steps of 50 of 255, windows of 20 values at every place, SHA-256 with a secret salt, the 50
largest distinct hashes; an input that shares 25 of them with any earlier one is an attack. Written
from the paper; memory is not bounded, as in the paper nothing is forgotten for a day.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import numpy as np

WINDOW, STEP, KEPT, MATCHES = 20, 50, 50, 25


class Blacklight:
    """Says of each input in [0, 1] whether it is an attack's; remembers it."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._known: defaultdict[bytes, list[int]] = defaultdict(list)
        self._count = 0

    def attacked(self, x: np.ndarray) -> bool:
        """Judge one input (any shape)."""
        hashes = self.hashes(x)
        shared = Counter(other for one in hashes for other in self._known[one])
        for one in hashes:
            self._known[one].append(self._count)
        self._count += 1
        return bool(shared) and max(shared.values()) >= MATCHES

    def hashes(self, x: np.ndarray) -> list[bytes]:
        """Return the largest distinct hashes of an input's windows."""
        steps = np.rint(255 * x.ravel() / STEP).astype(np.uint8)
        cut = {steps[i : i + WINDOW].tobytes() for i in range(max(1, len(steps) - WINDOW + 1))}
        return sorted((hashlib.sha256(self._salt + one).digest() for one in cut), reverse=True)[
            :KEPT
        ]
