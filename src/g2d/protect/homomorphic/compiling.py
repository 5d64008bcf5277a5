"""From steps to programs: the cheapest of the layouts that fit into the slots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from g2d.protect.homomorphic.errors import Unsupported
from g2d.protect.homomorphic.first import first_programs
from g2d.protect.homomorphic.matrices import Step, pattern, summed
from g2d.protect.homomorphic.packing import Lying, Program, next_programs

__all__ = ["compile_steps"]


def compile_steps(steps: Sequence[Step], slots: int) -> tuple[tuple[Step, ...], list[Program]]:
    """The steps, with pooling left to rotations where that is cheaper, and a program for each.

    Args:
        slots: S, half the degree.

    Raises:
        Unsupported: an activation does not fit into the slots.
    """
    search = _Search(steps, slots)
    found = search.rest(0, steps[0], None, math.inf)
    if found is None:
        raise search.too_wide()
    return tuple(step for step, _ in found[1]), [program for _, program in found[1]]


class _Search:
    """All layouts, one step after the other, as long as they are no worse than the best so far."""

    def __init__(self, steps: Sequence[Step], slots: int) -> None:
        self._steps, self._slots = steps, slots
        self._patterns: dict[tuple[int, int], Any] = {}
        self._furthest = 0

    def rest(
        self, i: int, step: Step, taken: Lying | None, most: float
    ) -> tuple[float, list[tuple[Step, Program]]] | None:
        """The cheapest programs from step `i` on, cheaper than `most`."""
        self._furthest = max(self._furthest, i)
        best = None

        def left() -> float:
            return most

        for after in self._versions(i + 1):
            for program, lying in self._programs(i, step, taken, after, left):
                if program.cost >= most:
                    continue
                if after is None:
                    best, most = (program.cost, [(step, program)]), program.cost
                    continue
                found = self.rest(i + 1, after, lying, most - program.cost)
                if found is not None:
                    most = program.cost + found[0]
                    best = most, [(step, program), *found[1]]
        return best

    def too_wide(self) -> Unsupported:
        """Why there is none."""
        step = self._steps[self._furthest]
        return Unsupported(
            f"layer {step.name!r} makes {math.prod(step.output)} numbers {step.output}, which do"
            f" not fit into {self._slots} slots in powers of two: a stride, pooling or fewer"
            " channels would do"
        )

    def _versions(self, i: int) -> list[Step | None]:
        """The step, with its pooling done by rotations, and by its matrix."""
        if i == len(self._steps):
            return [None]
        step = self._steps[i]
        sums = summed(step)
        return [step] if sums is step else [sums, step]

    def _programs(
        self,
        i: int,
        step: Step,
        taken: Lying | None,
        after: Step | None,
        most: Callable[[], float],
    ) -> Iterator[tuple[Program, Lying]]:
        key = i, step.pooled
        if key not in self._patterns:
            self._patterns[key] = pattern(step).tocoo()
        where, level = self._patterns[key], len(self._steps) + 1 - i
        if taken is None:
            return first_programs(step, where, after, self._slots, level)
        return next_programs(step, where, taken, after, self._slots, level, most)
