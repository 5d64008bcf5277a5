"""Whether a request's inputs lie in the program's range: what parties compare, of shares.

An input is any integer x modulo 2^64, whatever a client of somebody else's making has sent. With
a = x - least and w = most - least, it is in the range if neither a nor w - a is negative. Parties
open whether any is, of a whole request, which tells nothing of an honest client's. To compare in 64
bits costs them twice what it costs in 32, a ring that shares go to by themselves; but there a may
be what it is not here. So sums of random halves of an input's values are compared in 64 bits first.
An honest one's lie in 0 to the sum of w. Where |a| of any value is more than that, half of all sums
lie outside, for a sum with it and the same sum without cannot both be inside: a client is found out
but for one of 2^40 times. What is left is below 2^31, and the same number in 32 bits.
Under Cheetah, whose second ring would cost a set-up of its own, all is compared in 64 bits.

Knows neither SPU nor links; `engine` compares, and opens one bit of each of the two.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from g2d.core.types import Array
from g2d.protect.multiparty.config import WIDTH
from g2d.protect.multiparty.program import FRACTION, Program

SUMS = 40
"""Random sums of each input."""
WIDE, NARROW = 64, 32
_REACH = 1 << 31


@dataclass(frozen=True)
class Ranges:
    """The comparisons of one program's inputs; it has a range."""

    program: Program
    protocol: str

    @cached_property
    def _least(self) -> Array:
        return self._each(self.program.least)

    @cached_property
    def _width(self) -> Array:
        return self._each(self.program.most) - self._least

    def _each(self, side: Sequence[float]) -> Array:
        """One side of the range for each value of an input, as `rings.to_ring` rounds it."""
        real = np.broadcast_to(np.array(side, np.float64), self.program.shape).reshape(-1)
        return np.round(np.ldexp(real, FRACTION)).astype(np.int64).view(np.uint64)

    @property
    def narrow(self) -> bool:
        """Whether it is compared in 32 bits: sums of an honest input are small enough."""
        return self.protocol == "aby3" and sum(map(int, self._width)) < _REACH

    def compared(self, n: int) -> list[tuple[int, int]]:
        """Of n inputs: in how many bits is compared, and how many numbers are."""
        values = 2 * n * math.prod(self.program.shape)
        return [(WIDE, 2 * n * SUMS), (NARROW, values)] if self.narrow else [(WIDE, values)]

    def values(self, body: bytes, rank: int) -> Array:
        """This party's shares of a and w - a of all inputs, (2 n, values, parts), uint64."""
        parts = WIDTH[self.protocol] // 8
        made = np.frombuffer(body, "<u8").reshape(-1, math.prod(self.program.shape), parts).copy()
        _add(made, -self._least, rank)
        return self._both(made, self._width, rank)

    def sums(self, body: bytes, rank: int, seed: str) -> Array:
        """The same of random sums of a, (2 n, SUMS, parts).

        Args:
            seed: drawn by all parties together, after all of them had the request.
        """
        parts = WIDTH[self.protocol] // 8
        chosen = _chosen(seed, math.prod(self.program.shape))
        given = np.frombuffer(body, "<u8").reshape(-1, chosen.shape[1], parts).copy()
        _add(given, -self._least, rank)
        made = np.stack([given[..., part] @ chosen.T for part in range(parts)], -1)
        return self._both(made, chosen @ self._width, rank)

    @staticmethod
    def _both(shares: Array, width: Array, rank: int) -> Array:
        other = -shares
        _add(other, width, rank)
        return np.concatenate([shares, other])


def _add(shares: Array, public: Array, rank: int) -> None:
    """Add public numbers to shares: to x_0, which party 0 has first and party 2 (ABY3) second."""
    last = shares.shape[-1] - 1
    if rank == 0:
        shares[..., 0] += public
    elif rank == 2 and last:
        shares[..., last] += public


def _chosen(seed: str, values: int) -> Array:
    """Which values each sum has, (SUMS, values), 0 or 1, uint64."""
    size = SUMS * values
    bits = np.frombuffer(hashlib.shake_256(seed.encode()).digest((size + 7) // 8), np.uint8)
    return np.unpackbits(bits)[:size].reshape(SUMS, values).astype(np.uint64)
