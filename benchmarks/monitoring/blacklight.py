"""Blacklight as published (Li et al. 2022, arXiv 2006.14042): the rival of our own monitor.

Pixels of 0 to 255, shifted by a secret image modulo 255, are rounded to multiples of 50; every
window of 20 of them is hashed; the 50 largest distinct hashes are an input's fingerprint. An input
is an attack's if one of all clients' earlier inputs shares more than 25 of them. Its hashes are
SHA-256, ours are 64 bits of a mixer; and the table is of fixed size, where newer hashes take the
place of older ones.
"""

from __future__ import annotations

import numpy as np

from g2d.core.types import Array
from g2d.redteam.policies.detection import Alarms

STEP, WINDOW, KEPT, THRESHOLD = 50, 20, 50, 25  # the paper's, for small images
_BITS = 22  # 4 million hashes of 16 bytes


class Blacklight:
    """A watch, as `redteam.policies.detection` shows it queries; and an attacker's copy of one.

    Args:
        bounds: least and largest value of an input. seed: of its secret image.
    """

    def __init__(self, alarms: Alarms, bounds: tuple[float, float], seed: int) -> None:
        self._alarms, self._bounds = alarms, bounds
        self._draws = np.random.default_rng(seed)
        self._salt: Array | None = None
        self._mask = np.uint64((1 << _BITS) - 1)
        self._hashes = np.zeros(1 << _BITS, np.uint64)
        self._inputs = np.zeros(1 << _BITS, np.int64)
        self._count = 0

    def observe(self, inputs: Array, logits: Array, client: str) -> None:
        """Alarm of each input that an earlier one matches; remember all."""
        for x in inputs:
            if self.near(x, client):
                self._alarms("query_attack", "an input like an earlier one", client=client)
            self.sent(x, client)

    def near(self, x: Array, client: str) -> bool:
        """Whether an earlier input shares more than the threshold of an input's hashes."""
        own = self._fingerprint(x)
        places = (own & self._mask).astype(np.int64)
        met = self._inputs[places][self._hashes[places] == own]
        return len(met) > THRESHOLD and int(np.unique(met, return_counts=True)[1].max()) > THRESHOLD

    def sent(self, x: Array, client: str) -> None:
        """Remember an input."""
        own = self._fingerprint(x)
        places = (own & self._mask).astype(np.int64)
        self._count += 1
        self._hashes[places], self._inputs[places] = own, self._count

    def _fingerprint(self, x: Array) -> Array:
        low, high = self._bounds
        pixels = 255 * (x.reshape(-1).astype(np.float64) - low) / (high - low)
        if self._salt is None:
            self._salt = self._draws.integers(0, 255, len(pixels))
        coarse = np.rint((pixels + self._salt) % 255 / STEP).astype(np.uint64)  # 0 to 5: 3 bits
        width = min(WINDOW, len(coarse))
        windows = np.lib.stride_tricks.sliding_window_view(coarse, width)
        codes = (windows << (3 * np.arange(width, dtype=np.uint64))).sum(1, dtype=np.uint64)
        return np.unique(_mixed(codes))[-KEPT:]


def _mixed(x: Array) -> Array:
    """SplitMix64's finaliser (Steele et al. 2014): the order of hashes has to be a random one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
