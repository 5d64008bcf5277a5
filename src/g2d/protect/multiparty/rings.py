"""Values as integers modulo 2^64, and their shares: additive, or replicated as ABY3 has them.

All but one share of a value are random bits of the system; whoever lacks one share sees numbers
that are uniform whatever the value is. SPU's own layout of shares (0.9.5, FM64) is kept, so that
parties take what is made here, and who asks or shares needs no SPU.

ABY3 (Mohassel and Rindal 2018): x = x_0 + x_1 + x_2, and party i holds (x_i, x_{i+1}).
Cheetah (Huang et al. 2022): x = x_0 + x_1, and party i holds x_i.
"""

from __future__ import annotations

import os

import numpy as np

from g2d.core.types import Array
from g2d.protect.multiparty.config import PARTIES, WIDTH
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.program import FRACTION

ABY3, CHEETAH = PARTIES
_MOST = float(1 << (62 - 2 * FRACTION))  # a product keeps 2^36 times its value in 63 bits


def to_ring(values: Array) -> Array:
    """Fixed-point integers modulo 2^64 of finite reals, the same shape, uint64.

    Raises:
        MultipartyError: a value is not finite, or too large.
    """
    real = np.asarray(values, np.float64)
    if not np.isfinite(real).all() or np.abs(real).max(initial=0.0) >= _MOST:
        raise MultipartyError(
            f"values have to be finite and below {_MOST:g}, for {FRACTION} bits after the point"
        )
    return np.round(np.ldexp(real, FRACTION)).astype(np.int64).view(np.uint64)


def from_ring(values: Array) -> Array:
    """The reals (float64) of `to_ring`."""
    return np.ldexp(values.view(np.int64).astype(np.float64), -FRACTION)


def split(values: Array, protocol: str) -> list[bytes]:
    """Shares of ring elements, one for each party, as bytes."""
    whole = np.ascontiguousarray(values, "<u8").reshape(-1)
    count = PARTIES[protocol]
    parts = [np.frombuffer(os.urandom(whole.nbytes), "<u8") for _ in range(count - 1)]
    with np.errstate(over="ignore"):
        parts.append(whole - np.add.reduce(parts))
    if protocol == ABY3:
        parts = [np.stack([parts[i], parts[(i + 1) % 3]], -1) for i in range(3)]
    return [part.astype("<u8").tobytes() for part in parts]


def join(shares: list[bytes], protocol: str) -> Array:
    """The ring elements (n,) of all parties' shares.

    Raises:
        MultipartyError: a share is missing or of another length; or two parties that hold the same
            part of a value (ABY3) have sent different ones.
    """
    width = WIDTH[protocol]
    sizes = {len(share) for share in shares}
    if len(shares) != PARTIES[protocol] or len(sizes) != 1 or sizes.pop() % width:
        raise MultipartyError(
            f"shares of {[len(share) for share in shares]} bytes: expected {PARTIES[protocol]} of"
            " one length"
        )
    parts = [np.frombuffer(share, "<u8") for share in shares]
    if protocol == ABY3:
        held = [part.reshape(-1, 2) for part in parts]
        for i in range(3):
            if not np.array_equal(held[i][:, 1], held[(i + 1) % 3][:, 0]):
                raise MultipartyError(
                    f"parties {i} and {(i + 1) % 3} hold the same part of the answer and sent"
                    " different ones: one of them has computed something else"
                )
        parts = [part[:, 0] for part in held]
    with np.errstate(over="ignore"):
        return np.add.reduce(parts)
