"""Vaults that benchmarks of ownership share: found by seed, grown to a number of generations."""

from __future__ import annotations

from pathlib import Path

from g2d import Defence
from g2d.core.seeds import seed_of
from g2d.errors import GenerationError

_TRIES = 20  # for one generation: seeds of which no candidate passed the gates


def of_seed(pattern: Path, seed: int) -> Path:
    """The vault of a seed: `{seed}` in a path stands for it, as in runs/ownership-{seed}-marked."""
    return Path(str(pattern).replace("{seed}", str(seed)))


def grow(defence: Defence, seed: int) -> int:
    """Make the next generation, the same in every run; return how many seeds were refused.

    Raises:
        GenerationError: no candidate of any seed passed the gates.
    """
    number = defence.vault.last_number()
    for refused in range(_TRIES):
        draws = (refused,) if refused else ()
        try:
            defence.generate(seed=seed_of(seed, "generation", number, *draws) % 2**31)
        except GenerationError:
            if refused == _TRIES - 1:
                raise
        else:
            return refused
    raise AssertionError("the last one raises")
