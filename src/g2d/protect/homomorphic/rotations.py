"""Which rotations add up to which, from few keys: baby steps, giant steps, and the costs of both.

A sum over r of d_r * rot(x, r) is computed as a sum over giant steps g of rot(sum over baby steps
b of d'_{b+g} * rot(x, b), g): |B| + |G| rotations instead of |B| times |G| (Halevi & Shoup 2014).
SEAL has no cheaper way to rotate one ciphertext several times, so a rotation is made from the one
before it by a small step, and a handful of keys is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Split", "Tree", "multiply_cost", "rotate_cost", "split", "tree"]

Tree = tuple[tuple[int, int, int], ...]
"""(value, parent, step): value = parent + step, parents first; the root is 0."""


@dataclass(frozen=True)
class Split:
    """Rotations as sums of a baby and a giant step; r has the baby step r & mask."""

    mask: int
    babies: Tree
    giants: Tree


def rotate_cost(level: int) -> float:
    """Milliseconds of one key switch over `level` primes at N = 16384; other N keep the ratios."""
    return 0.23 * level * (level + 2)


def multiply_cost(level: int) -> float:
    """Milliseconds of one product with a plaintext, its addition, and a share of its encoding."""
    return 0.16 * level


def tree(values: Iterable[int]) -> Tree:
    """A way from 0 to each value by few different steps, one key switch a value.

    Steps that others take already go first; a new step is a power of two where one leads there.
    """
    found: list[tuple[int, int, int]] = []
    known, steps = {0}, list[int]()
    for value in sorted(set(values) - {0}):
        step = next((one for one in steps if value - one in known), None)
        if step is None:
            powers = (1 << bit for bit in range(value.bit_length()))
            step = next((one for one in powers if value - one in known), value)
            steps.append(step)
        found.append((value, value - step, step))
        known.add(value)
    return tuple(found)


def split(rotations: Sequence[int], low: int) -> Split:
    """The cheapest baby and giant steps for what has to be rotated by.

    Args:
        rotations: not negative. low: bits that belong together (a grid's row), never parted.
    """
    array = np.array(rotations, dtype=np.int64)
    used = int(np.bitwise_or.reduce(array))
    fields = [((1 << low) - 1) & used] if low else []
    fields += [1 << bit for bit in range(low, used.bit_length()) if used >> bit & 1]
    best = (len(set(rotations) | {0}), 0)
    for chosen in range(1, 1 << min(len(fields), 10)):
        mask = sum(field for i, field in enumerate(fields) if chosen >> i & 1)
        count = len({0, *(array & mask).tolist()})
        if count < best[0]:
            count += len({0, *(array & ~mask).tolist()}) - 1
            best = min(best, (count, mask))
    mask = best[1]
    return Split(mask, tree((array & mask).tolist()), tree((array & ~mask).tolist()))
