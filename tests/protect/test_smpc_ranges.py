"""What parties compare tells whether inputs are in range, whatever integers a client has shared."""

from __future__ import annotations

import numpy as np
import pytest

from g2d.protect.multiparty.party.ranges import NARROW, SUMS, WIDE, Ranges
from g2d.protect.multiparty.program import Program
from g2d.protect.multiparty.rings import join, split, to_ring

VALUES = 6
ENDS = np.iinfo(np.int64)


def ranges(least: tuple[float, ...], most: tuple[float, ...], protocol: str = "aby3") -> Ranges:
    dense = {"kind": "linear", "weight": [2, VALUES], "bias": False}
    return Ranges(Program((VALUES,), 2, (dense,), least, most), protocol)


def whole(shares: list[np.ndarray], protocol: str) -> np.ndarray:
    """Signed integers that shares add up to."""
    return join([one.astype("<u8").tobytes() for one in shares], protocol).view(np.int64)


def accepted(found: Ranges, x: np.ndarray, seed: str = "seed") -> bool:
    """Whether parties take one input of these integers, computed from their shares."""
    protocol = found.protocol
    bodies = split(x.view(np.uint64), protocol)
    values = [found.values(body, rank) for rank, body in enumerate(bodies)]
    sums = [found.sums(body, rank, seed) for rank, body in enumerate(bodies)]
    counts = [(WIDE, sums[0][..., 0].size), (NARROW, values[0][..., 0].size)]
    assert found.compared(1) == (counts if found.narrow else [(WIDE, 2 * VALUES)])
    signed = whole(values, protocol)
    if not found.narrow:
        return bool((signed >= 0).all())
    low = (signed & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    return bool((whole(sums, protocol) >= 0).all() and (low >= 0).all())


@pytest.mark.parametrize("protocol", ["aby3", "cheetah"])
@pytest.mark.parametrize(
    ("least", "most"),
    [((0.0,), (1.0,)), ((-3.0,), (5.0,)), ((-0.3,), (0.7,)), ((-32768.0,), (32768.0,)),
     ((0.0, -1.0, 0.1, 2.0, 0.0, 0.0), (1.0, 1.0, 0.2, 9.0, 1.0, 0.5))],
)  # fmt: skip
def test_exactly_what_is_in_range_is_taken(protocol, least, most):
    found = ranges(least, most, protocol)
    assert found.narrow == (protocol == "aby3" and max(most) < 1000)
    low, high = (to_ring(np.broadcast_to(side, VALUES)).view(np.int64) for side in (least, most))
    rng = np.random.default_rng(0)
    inside = rng.integers(low, high + 1, (20, VALUES))
    for x in [low, high, *inside]:
        assert accepted(found, x)
    far = [ENDS.max, ENDS.min, ENDS.min + 1, -(1 << 32), 1 << 32, 1 << 31, -(1 << 31), 1 << 63 - 1]
    for offset in [1, 2, 1 << 18, *far, *rng.integers(ENDS.min, ENDS.max, 20)]:
        for at in range(VALUES):
            for border, sign in ((low, -1), (high, 1)):
                x = border.copy()
                with np.errstate(over="ignore"):
                    x[at] += np.int64(sign) * np.int64(offset)
                if not low[at] <= x[at] <= high[at]:
                    assert not accepted(found, x), (x, at)


def test_what_wraps_around_in_32_bits_is_found_by_sums():
    """Multiples of 2^32 are nothing in the narrow ring, and several can add up to nothing."""
    found = ranges((0.0,), (1.0,))
    for pair in ((1 << 32, -(1 << 32)), (1 << 63, 1 << 63), (1 << 32, 1 << 32)):
        x = np.zeros(VALUES, np.uint64)
        x[:2] = [one % (1 << 64) for one in pair]
        told = [accepted(found, x.view(np.int64), f"seed {i}") for i in range(50)]
        assert not any(told)


def test_the_sums_are_of_the_seed_and_halves():
    from g2d.protect.multiparty.party.ranges import _chosen

    assert (_chosen("a", 1000) == _chosen("a", 1000)).all()
    assert (_chosen("a", 1000) != _chosen("b", 1000)).any()
    assert abs(_chosen("a", 1000).mean() - 0.5) < 0.02
    assert _chosen("a", 3).shape == (SUMS, 3)
