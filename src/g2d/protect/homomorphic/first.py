"""The first step: the client lays patches out, so that products need few rotations or none.

The inputs that one position of the grid needs, its patch, are its taps. A ciphertext holds, at each
slot of a result, one tap of that position. Taps that are spread over copies of the results are
summed by rotations (`copies`); taps that are spread over the channels (`turns`) are brought to each
channel by rotations of whole blocks; the rest takes more ciphertexts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from g2d.protect.homomorphic.matrices import Step
from g2d.protect.homomorphic.packing import (
    Entries,
    Lying,
    Program,
    after_square,
    doublings,
    grids,
    pad,
    padded_channels,
)
from g2d.protect.homomorphic.rotations import multiply_cost, rotate_cost, tree

__all__ = ["first_programs"]

_CIPHERTEXT = 10.0
"""Milliseconds that a further input ciphertext counts as: it is encrypted, sent, read and kept."""

_MOST_CIPHERTEXTS = 64


@dataclass(frozen=True)
class _Taps:
    """table[t, a]: the input that is tap t of position a, or -1; `of`: the tap of each product."""

    table: np.ndarray
    of: np.ndarray


@dataclass(frozen=True)
class _Way:
    grid: int
    pitch: int
    block: int
    group: int
    copies: int
    turns: int

    @property
    def period(self) -> int:
        """Slots of all results, once."""
        return self.grid**2 * self.group


def first_programs(
    step: Step, where: Any, after: Step | None, slots: int, level: int
) -> Iterator[tuple[Program, Lying]]:
    """Ways to evaluate the first step, the cheapest for each layout of its results.

    Args:
        where: the pattern of its matrix, COO. after: the next step. slots: S. level: primes.
    """
    channels, height, width = step.output
    taps = _taps(where, height * width)
    for grid in grids(after):
        pitch = pad(-(-width // grid))
        block = pad(-(-height // grid)) * pitch
        group = padded_channels(step.output, block, after) * block
        if grid * grid * group > slots:
            continue
        ways = [
            _Way(grid, pitch, block, group, copies, turns)
            for copies in (1, *doublings(2, 2 * slots // (grid * grid * group)))
            for turns in (1, *doublings(2, 2 * pad(channels)))
        ]
        way = min(ways, key=lambda way: _cost(way, taps, level))
        if _ciphertexts(way, taps) * _versions(way) <= _MOST_CIPHERTEXTS:
            yield _program(step, where, taps, way, after, slots, level)


def _taps(where: Any, area: int) -> _Taps:
    inputs = where.shape[1]
    keys = (where.row % area).astype(np.int64) * inputs + where.col
    unique, inverse = np.unique(keys, return_inverse=True)
    position = unique // inputs
    start = np.searchsorted(position, np.arange(area))
    rank = np.arange(len(unique)) - start[position]
    table = np.full((int(rank.max()) + 1, area), -1, dtype=np.int64)
    table[rank, position] = unique % inputs
    return _Taps(table, rank[inverse])


def _ciphertexts(way: _Way, taps: _Taps) -> int:
    return -(-len(taps.table) // (way.copies * way.turns))


def _versions(way: _Way) -> int:
    """2 where a rotation carries the last channels' taps into the next group: see `_gathers`."""
    return 2 if way.turns > 1 and way.grid * way.copies > 1 else 1


def _cost(way: _Way, taps: _Taps, level: int) -> float:
    count = _ciphertexts(way, taps)
    switches = way.turns - 1 + way.copies.bit_length() - 1
    products = count * way.turns * _versions(way)
    cost = products * multiply_cost(level) + switches * rotate_cost(level)
    return cost + count * _versions(way) * _CIPHERTEXT


def _program(
    step: Step, where: Any, taps: _Taps, way: _Way, after: Step | None, slots: int, level: int
) -> tuple[Program, Lying]:
    channels, height, width = step.output
    c, y, x = np.indices((channels, height, width)).reshape(3, -1)
    k = way.grid
    phase = (y % k) * k + x % k
    places = phase * way.group + c * way.block + (y // k) * way.pitch + x // k
    versions = _versions(way)
    channel, tap = c[where.row], taps.of
    turn = (tap % way.turns - channel) % way.turns
    carried = (channel + turn >= way.group // way.block).astype(np.int64)
    source = tap // (way.copies * way.turns) * versions + carried * (versions - 1)
    copy = tap // way.turns % way.copies
    rotation = turn * way.block
    names, term = np.unique(rotation * slots + source, return_inverse=True)
    terms = tuple((int(key) % slots, int(key) // slots) for key in names)
    repeat = way.copies * way.period
    slot = (copy * way.period + places[where.row] + rotation) % repeat
    made = Lying(places, way.period, way.pitch, way.block)
    pools, lying = after_square(made, after, way.group, way.period)
    folds = doublings(way.period, repeat)
    program = Program(
        terms=terms,
        babies=(),
        giants=tree(rotation for _, rotation in terms),
        folds=folds,
        pools=pools,
        made=made,
        clean=True,
        entries=Entries(term, slot, where.row, where.col, repeat),
        cost=_cost(way, taps, level) + len(pools) * rotate_cost(level - 1),
        gathers=_gathers(step, taps, way, slots),
    )
    return program, lying


def _gathers(step: Step, taps: _Taps, way: _Way, slots: int) -> np.ndarray:
    """What the client puts where, (ciphertexts, S).

    A slot is [copy and phase: a group][channel][row][column]. A rotation by whole blocks reads, for
    the last channels, from the next group; the second version of a ciphertext holds there what
    belongs to the group before.
    """
    _, height, width = step.output
    slot = np.arange(slots)
    channel = slot % way.group // way.block
    row, column = slot % way.block // way.pitch, slot % way.pitch
    k, rows = way.grid, []
    for j in range(_ciphertexts(way, taps)):
        for version in range(_versions(way)):
            group = (slot // way.group - version) % (slots // way.group)
            copy, phase = group // k**2 % way.copies, group % k**2
            tap = (j * way.copies + copy) * way.turns + channel % way.turns
            y, x = row * k + phase // k, column * k + phase % k
            there = (y < height) & (x < width) & (tap < len(taps.table))
            position = np.where(there, y * width + x, 0)
            rows.append(np.where(there, taps.table[np.where(there, tap, 0), position], -1))
    return np.stack(rows)
