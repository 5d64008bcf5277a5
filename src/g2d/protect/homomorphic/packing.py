"""Where each number of an activation lies in a ciphertext, and which products make the next one.

A ciphertext has S = N/2 slots. An activation of C channels on a grid lies as
[phase][channel][row][column], each field a power of two: a phase is (y mod k, x mod k), where k is
the stride of the convolution, or the side of the pooling, that comes next. So pooling is a sum of
rotations by whole phases, and a convolution's taps are the same few rotations everywhere.

A step y = M x is a sum over r of d_r * rot(x, r), where d_r holds M[o, k] at the slot whose
rotation by r brings k there (generalised diagonals). Where there is room for F slots of results in
the P that x takes, P/F partial sums of each result stand F apart, and rotations by F, 2F, ... P/2
add them up: fewer diagonals.

Behind the last step at least one slot of every period holds nothing: a number that wrapped around
is as wrong in every copy of it, and shows where zero was to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from g2d.protect.homomorphic.matrices import Step
from g2d.protect.homomorphic.rotations import Split, Tree, multiply_cost, rotate_cost, split

__all__ = [
    "Entries",
    "Lying",
    "Program",
    "after_square",
    "doublings",
    "grids",
    "next_programs",
    "pad",
    "padded_channels",
]


@dataclass(frozen=True)
class Lying:
    """Where the numbers of an activation lie: number i at `slots[i]` and every `period` after.

    Attributes:
        pitch, block: slots of a row and of a channel.
    """

    slots: np.ndarray
    period: int
    pitch: int
    block: int


@dataclass(frozen=True)
class Entries:
    """M[row, column] stands at `slot` of plaintext `term`, and every `period` after."""

    term: np.ndarray
    slot: np.ndarray
    row: np.ndarray
    column: np.ndarray
    period: int


@dataclass(frozen=True)
class Program:
    """How one step is evaluated.

    Attributes:
        terms: for each plaintext, its source (an input ciphertext, or a baby step) and giant step.
        babies, giants: how the rotations are made. folds: rotations that add partial sums.
        pools: rotations after the square that sum the windows of the next step's pooling.
        gathers: of the first step alone, (ciphertexts, S): which number of the input the client
            puts into each slot, -1 for none.
        made: where the results lie, before `pools`; clean: no slot holds anything but results.
        cost: milliseconds, roughly.
    """

    terms: tuple[tuple[int, int], ...]
    babies: Tree
    giants: Tree
    folds: tuple[int, ...]
    pools: tuple[int, ...]
    made: Lying
    clean: bool
    entries: Entries
    cost: float
    gathers: np.ndarray | None = None

    def rotations(self) -> set[int]:
        """Steps of the products and sums, at the step's own level."""
        steps = {step for _, _, step in (*self.babies, *self.giants)}
        return steps | set(self.folds)


def pad(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def padded_channels(output: tuple[int, int, int], block: int, after: Step | None) -> int:
    """The channels that a layout of results has room for: behind the last step, some are idle."""
    channels, height, width = output
    full = after is None and pad(channels) * block == channels * height * width
    return pad(channels) * (2 if full else 1)


def doublings(start: int, stop: int) -> tuple[int, ...]:
    """start, 2 start, ... below stop."""
    return tuple(start << i for i in range(max(0, (stop // start).bit_length() - 1)))


def after_square(
    made: Lying, after: Step | None, spread: int, span: int
) -> tuple[tuple[int, ...], Lying]:
    """Rotations that sum the windows of the next step's pooling, and where its input lies then.

    Args:
        after: the next step. spread: slots of one phase. span: slots of all phases, after which
            the ciphertext repeats: so the sums stand in the place of every phase.
    """
    if after is None or after.pooled == 1:
        return (), made
    channels, height, width = after.shape
    side = after.pooled
    grid = made.slots.reshape(channels, height, width)
    top, left = height // side * side, width // side * side
    slots = grid[:, :top:side, :left:side].ravel() % spread
    return doublings(spread, span), Lying(slots, spread, made.pitch, made.block)


def next_programs(
    step: Step,
    where: Any,
    taken: Lying,
    after: Step | None,
    slots: int,
    level: int,
    most: Callable[[], float],
) -> Iterator[tuple[Program, Lying]]:
    """Ways to evaluate a step that is not the first, those with few products before others.

    Args:
        step: with `pooled` as the ciphertext comes. where: the pattern of its matrix, COO.
        taken: where its input lies. after: the next step, None behind the last.
        slots: S. level: primes that are left. most: what is no cheaper need not be tried.
    """
    tried = [
        (_offsets(step, where, taken, way), i, way)
        for i, way in enumerate(_layouts(step, taken, after, slots))
    ]
    for offsets, _, way in sorted(tried, key=lambda one: (len(one[0][0][1]), one[1])):
        if len(offsets[0][1]) * multiply_cost(level) < most():
            yield _program(step, where, taken, after, slots, level, way, offsets)


def grids(after: Step | None) -> list[int]:
    """Sides of the grid of phases that results may be laid in for the next step."""
    if after is None:
        return [1]
    return [after.pooled] if after.pooled > 1 else sorted({1, after.grid})


@dataclass(frozen=True)
class _Layout:
    """One way to lay results: `grid` phases, `low` channels in each stretch of `stretch` slots."""

    grid: int
    pitch: int
    block: int
    low: int
    stretch: int
    phase: int
    folded: bool

    @property
    def fold(self) -> int:
        """Slots between the partial sums of a result."""
        return self.low * self.block


def _layouts(step: Step, taken: Lying, after: Step | None, slots: int) -> Iterator[_Layout]:
    channels, height, width = step.output
    for grid in grids(after):
        rows, columns, phase = -(-height // grid), -(-width // grid), slots // grid**2
        for pitch in sorted({pad(columns), max(pad(columns), taken.pitch)}):
            for block in sorted({pad(rows) * pitch, max(pad(rows) * pitch, taken.block)}):
                low = padded_channels(step.output, block, after)
                least = low if after is None else 1  # channels beside each other
                if low * block <= phase and (low * block > taken.period or taken.period > phase):
                    yield _Layout(grid, pitch, block, low, phase, phase, False)
                while low >= least and low * (phase // taken.period) >= channels:
                    if low * block <= taken.period:
                        yield _Layout(grid, pitch, block, low, taken.period, phase, True)
                    low //= 2


def _places(step: Step, layout: _Layout) -> np.ndarray:
    """The slot of each result, in torch's order."""
    channels, height, width = step.output
    c, y, x = np.indices((channels, height, width)).reshape(3, -1)
    k = layout.grid
    high, low = np.divmod(c, layout.low)
    inside = low * layout.block + (y // k) * layout.pitch + x // k
    return ((y % k) * k + x % k) * layout.phase + high * layout.stretch + inside


Offsets = list[tuple[int, tuple[int, ...]]]


def _offsets(step: Step, where: Any, taken: Lying, way: _Layout) -> Offsets:
    """Shifts of all results and the rotations that they leave, few rotations first.

    With the right one, taps to the left and above need no steps of their own.
    """
    places = _places(step, way)
    unique = np.unique((taken.slots[where.col] - places[where.row]) % taken.period)
    reach = range(4) if way.block > 1 else range(1)
    seen: dict[tuple[int, ...], int] = {}
    for down in reach:
        for right in reach:
            moved = (unique + down * way.pitch + right) % taken.period
            by = moved % way.fold if way.folded else moved
            seen.setdefault(tuple(np.unique(by).tolist()), down * way.pitch + right)
    found = [(offset, rotations) for rotations, offset in seen.items()]
    return sorted(found, key=lambda one: (len(one[1]), sum(one[1]), one[0]))


def _best_offset(offsets: Offsets, way: _Layout) -> tuple[int, Split]:
    """Of the shifts that leave fewest rotations, the one that splits best."""
    low = max(0, way.pitch.bit_length() - 1) if way.block > 1 else 0
    least = len(offsets[0][1])
    ways = [(split(by, low), offset) for offset, by in offsets[:4] if len(by) == least]
    chosen, offset = min(ways, key=lambda way: len(way[0].babies) + len(way[0].giants))
    return offset, chosen


def _program(
    step: Step,
    where: Any,
    taken: Lying,
    after: Step | None,
    slots: int,
    level: int,
    way: _Layout,
    offsets: Offsets,
) -> tuple[Program, Lying]:
    """The products for one layout."""
    places = _places(step, way)
    offset, chosen = _best_offset(offsets, way)
    ahead = (taken.slots[where.col] - places[where.row] + offset) % taken.period
    by, part = (ahead % way.fold, ahead // way.fold) if way.folded else (ahead, 0 * ahead)
    places = (places - offset) % slots
    folds = doublings(way.fold, taken.period) if way.folded else ()
    clean = way.grid == 1 and way.low >= step.output[0]
    span = way.fold if way.folded else max(way.fold, taken.period)
    period = span if clean else slots
    giant = by & ~chosen.mask
    keys = giant * slots + (by & chosen.mask)
    names, term = np.unique(keys, return_inverse=True)
    terms = tuple((int(key) % slots, int(key) // slots) for key in names)
    slot = (places[where.row] + part * way.fold + giant) % slots
    repeat = max(span, taken.period) if clean else slots
    entries = Entries(term, slot % repeat, where.row, where.col, repeat)
    made = Lying(places % period, period, way.pitch, way.block)
    pools, lying = after_square(made, after, way.phase, slots)
    switches = len(chosen.babies) + len(chosen.giants) + len(folds)
    cost = switches * rotate_cost(level) + len(terms) * multiply_cost(level)
    cost += len(pools) * rotate_cost(level - 1)
    program = Program(terms, chosen.babies, chosen.giants, folds, pools, made, clean, entries, cost)
    return program, lying
