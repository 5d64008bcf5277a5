"""Bit flips on networks as they are served: each load in a secret layout of its own.

The attacker searches on the file of network t. He flips the same bits in the memory of another load
(a replica that serves t, or t + 1), as many bytes behind the beginning of the block that holds its
parameters as they lie in the file behind that of its tensors. He has read neither memory; one who
reads it first is not stopped, and is no row here.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from g2d.attacks.bitflip import Flip, Quantised, flipped, quantise, random_flips
from g2d.core.types import State
from g2d.generator import hidden_units
from g2d.protect.layout import hide, places
from g2d.redteam.context import Chain, Network
from g2d.redteam.rows import Row
from g2d.redteam.threats.bitflips.scoring import Bench, Curve, unmeasured
from g2d.weights.checkpoints import pack

_SECRET, _PLAIN = "secret layout", "had it stayed (plain layout)"
_NAMES = {
    "replica": "the same flips on another replica",
    "next": "the same flips on the next network",
}


@dataclass(frozen=True)
class _Found:
    """Flips found on the file of a network, with how many of them ruin it; who is flipped."""

    read: Network
    network: Network
    flips: list[Flip]
    enough: int
    at: tuple[int, ...]  # of each flip: bytes from where the file's tensors begin


def served(bench: Bench, chain: Chain) -> list[Row]:
    """Flips from the file of t, on t and on t + 1 as they lie in memory; beside them controls."""
    exposed, later = chain.split(bench.case.number("exposed"), 1)
    networks = (*exposed, *later) if len(chain.networks) > 1 else exposed
    found = [_find(bench, network) for network in exposed]
    following = zip(found, networks[1:], strict=False)
    hit = {"replica": found, "next": [replace(one, network=n) for one, n in following]}
    loads, rows = _Loads(bench), []
    for kind, aimed in hit.items():
        if not aimed:
            why = f"{chain.name} holds one network: there is no next one; generate more"
            rows.append(unmeasured(bench.case, f"layout-{kind}", f"{_NAMES[kind]}: {_SECRET}", why))
            continue
        rows.append(_row(bench, f"layout-{kind}", f"{_NAMES[kind]}: {_SECRET}", aimed, loads.aimed))
        rows.append(
            _row(bench, f"layout-{kind}-plain", f"{_NAMES[kind]}: {_PLAIN}", aimed, _plainly(bench))
        )
    name = f"as many flips of the same bits at random: {_SECRET}"
    return [*rows, _row(bench, "layout-random", name, found, loads.random)]


def _find(bench: Bench, network: Network) -> _Found:
    stored, state = bench.stored(network), bench.state(network)
    flips = bench.search(stored)
    starts = _in_file(state)
    at = tuple(starts[f.tensor] + f.index * state[f.tensor].element_size() for f in flips)
    return _Found(network, network, flips, bench.count(stored, flips), at)


def _in_file(state: State) -> dict[str, int]:
    """Where each tensor begins in a file, in bytes from where tensors begin."""
    data = pack(state)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: header[name]["data_offsets"][0] for name in state}


class _Loads:
    """Serves networks, each time by new secrets, and counts the flips that hit a weight."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._units = hidden_units(bench.context.task)
        self._source = bench.context.source("bits", "layout")

    def aimed(self, found: _Found) -> tuple[Curve, float]:
        """Flip a load at the places of the file; the curve, and the share that hit a weight."""
        state, stored = self._load(found)
        sizes = [tensor.numel() * tensor.element_size() for tensor in state.values()]
        starts = places(sizes, self._draw)[0]
        inside = _Block(state, dict(zip(state, starts, strict=True)))
        hits = [inside.weight(at) for at in found.at]
        flips = [(*hit, flip.bit) for hit, flip in zip(hits, found.flips, strict=True) if hit]
        enough = sum(hit is not None for hit in hits[: found.enough])
        return self._curve(stored, flips, enough), len(flips) / max(1, len(hits))

    def random(self, found: _Found) -> tuple[Curve, float]:
        """Flip a load at random weights: all of them are hit."""
        _, stored = self._load(found)
        drawn = random_flips(stored, len(found.flips), self._source)
        flips = [(d.tensor, d.index, f.bit) for d, f in zip(drawn, found.flips, strict=False)]
        return self._curve(stored, flips, found.enough), 1.0

    def _load(self, found: _Found) -> tuple[State, Quantised]:
        state = self._bench.state(found.network)
        hidden = hide(state, self._units, self._draw)[0] if self._units else state
        return hidden, quantise(hidden)

    def _curve(
        self, stored: Quantised, flips: Sequence[tuple[str, int, int]], enough: int
    ) -> Curve:
        parts = (flips[:0], flips[:enough], flips)
        after = tuple(self._bench.right(_damaged(stored, part).state()) for part in parts)
        return Curve(after[0], after)

    def _draw(self, count: int) -> bytes:
        """Bytes of the run's own source: the product's come from the operating system."""
        drawn = torch.randint(256, (count,), generator=self._source, dtype=torch.uint8)
        return bytes(drawn.tolist())


@dataclass(frozen=True)
class _Block:
    """Tensors in one block of memory, each from its own start, in bytes."""

    state: State
    starts: Mapping[str, int]

    def weight(self, at: int) -> tuple[str, int] | None:
        """The weight at a distance from the block's beginning; None: there is none."""
        names = sorted(self.starts, key=self.starts.__getitem__)
        before = bisect_right([self.starts[name] for name in names], at)
        if not before:
            return None
        name = names[before - 1]
        index = (at - self.starts[name]) // self.state[name].element_size()
        return (name, index) if index < self.state[name].numel() else None


def _damaged(stored: Quantised, flips: Sequence[tuple[str, int, int]]) -> Quantised:
    """Flip bits of codes; what is kept in full (biases, norms) loses its sign."""
    codes = [Flip(*flip) for flip in flips if flip[0] in stored.codes]
    rest: dict[str, Tensor] = dict(stored.rest)
    for name, index, _ in flips:
        if name in rest and rest[name].is_floating_point():
            rest[name] = rest[name].clone()
            rest[name].view(-1)[index] *= -1
    return flipped(replace(stored, rest=rest), codes)


def _plainly(bench: Bench) -> Callable[[_Found], tuple[Curve, float]]:
    def hit(found: _Found) -> tuple[Curve, float]:
        stored = bench.stored(found.network)
        return bench.sparse(stored, found.flips, found.enough), 1.0

    return hit


def _row(
    bench: Bench,
    kind: str,
    threat: str,
    found: Sequence[_Found],
    hit: Callable[[_Found], tuple[Curve, float]],
) -> Row:
    """All flips of each list, over several loads; beside it as many as ruin what they are of."""
    draws = 1 if kind.endswith("plain") else bench.case.number("draws")
    every = [one for one in found for _ in range(draws)]
    curves, landed = zip(*(hit(one) for one in every), strict=True)
    fewer = bench.average(curves, [1] * len(curves))
    loads = f"; {draws} loads of each" if draws > 1 else ""
    extra = {
        "flips_used": [len(one.flips) for one in found],
        "flips_enough": [one.enough for one in found],
        "lost_after_enough_flips": fewer,
        "landed": sum(landed) / len(landed),
    }
    note = (
        f"all flips of the list, of which {extra['landed']:.1%} hit a weight; after as many as "
        f"ruin the file's network {fewer:.1%} is lost{loads}"
    )
    pairs = [(one.read, one.network) for one in every]
    return bench.row(kind, threat, pairs, curves, [2] * len(curves), note=note, extra=extra)
