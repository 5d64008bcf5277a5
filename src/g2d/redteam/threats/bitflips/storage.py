"""Bit flips on networks that are kept in ways that a defender could add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from g2d.attacks.bitflip import Flip, flipped, in_ranges, quantise, random_flips
from g2d.core.types import State
from g2d.generator import hidden_units
from g2d.redteam.context import Chain, Network
from g2d.redteam.rows import Row
from g2d.redteam.threats.bitflips.scoring import Bench, Curve, unmeasured
from g2d.weights.symmetry import Coupling, balance, permute


@dataclass(frozen=True)
class _Aimed:
    """Flips that ruin an exposed network, and the next one, kept in the same way."""

    read: Network
    network: Network
    flips: list[Flip]
    state: State


def hardened(bench: Bench, chain: Chain) -> list[Row]:
    """The next network, kept in ways that hide or blunt positions at little cost in function.

    The attacker searches on a network kept in the same way; secrets are drawn anew for each.
    """
    if len(chain.networks) < 2:
        return [
            unmeasured(bench.case, "kept", "hardened generations", "only one network was exposed")
        ]
    secrets = _Secrets(
        bench, hidden_units(bench.context.task), bench.context.source("bits", "secrets")
    )
    units, reordered, shuffled = secrets.units, secrets.reordered, secrets.shuffled
    plain, same = _aimed(bench, chain, dict), "exactly the same function"
    if units:
        balanced = _aimed(bench, chain, lambda state: balance(state, units))
        in_range, clipped = partial(reordered, ranges=True), _aimed(bench, chain, _clipped)
        rows = [
            _kept(bench, "reordered", "secretly reordered units", plain, reordered, same),
            _kept(bench, "balanced", "balanced and secretly reordered units", balanced,
                  reordered, same),
            _kept(bench, "in-range", "reordered units, weights kept in their range", plain,
                  in_range, same),
            _kept(bench, "clipped", "weights clipped at 3 deviations, reordered", clipped,
                  reordered, "clipping costs the accuracy shown"),
        ]  # fmt: skip
    else:
        why = "the model is not a plain chain of hidden units"
        rows = [unmeasured(bench.case, "kept-reordered", "secretly reordered units", why)]
    stored = f"{same}; protects what is stored, not a copy put in order for computing"
    return [
        *rows,
        _kept(bench, "secret-order", "weights stored in a secret order", plain, shuffled, stored),
        _kept(
            bench,
            "secret-bits",
            "bits stored in a secret order",
            plain,
            partial(shuffled, bit=None),
            stored,
        ),
    ]


@dataclass(frozen=True)
class _Secrets:
    """Orders that a defender draws anew for every network."""

    bench: Bench
    units: tuple[Coupling, ...]
    source: torch.Generator

    def reordered(self, flips: Sequence[Flip], state: State, ranges: bool = False) -> Curve:
        """Flip a network whose hidden units are in another order: the same function."""
        orders = [torch.randperm(layer.units, generator=self.source) for layer in self.units]
        target = quantise(permute(state, self.units, orders))
        hit = flipped(target, flips)
        after = in_ranges(hit, target) if ranges else hit.state()
        return Curve(self.bench.right(target.state()), (self.bench.right(after),))

    def shuffled(self, flips: Sequence[Flip], state: State, bit: int | None = 7) -> Curve:
        """Flip a network stored in a secret order: what was aimed at falls anywhere."""
        target = quantise(state)
        return self.bench.ends(target, random_flips(target, len(flips), self.source, bit))


def _aimed(bench: Bench, chain: Chain, prepare: Callable[[State], State]) -> list[_Aimed]:
    """Flips that ruin each exposed network, kept in some way, and the next one, kept likewise."""
    exposed, later = chain.split(bench.case.number("exposed"), 1)
    aimed = []
    for network, following in pairwise((*exposed, *later)):
        stored = quantise(prepare(bench.state(network)))
        flips = bench.search(stored)
        enough, state = flips[: bench.count(stored, flips)], prepare(bench.state(following))
        aimed.append(_Aimed(network, following, enough, state))
    return aimed


def _kept(
    bench: Bench,
    kind: str,
    name: str,
    aimed: Sequence[_Aimed],
    hit: Callable[[Sequence[Flip], State], Curve],
    note: str,
) -> Row:
    """A row of one way to keep networks, over several draws of its secret."""
    draws = bench.case.number("draws")
    every = [one for one in aimed for _ in range(draws)]
    curves = [hit(one.flips, one.state) for one in every]
    return bench.row(
        f"kept-{kind}",
        f"the same flips on the next network: {name}",
        [(one.read, one.network) for one in every], curves,
        [1] * len(curves),
        note=f"{note}; {draws} draws of the secret for each",
        extra={"flips_used": [len(one.flips) for one in aimed]},
    )  # fmt: skip


def _clipped(state: State) -> State:
    """Weights cut off at three standard deviations of their tensor: a sign bit is worth less."""
    return {
        name: tensor.clamp(-3 * float(tensor.std()), 3 * float(tensor.std()))
        if tensor.is_floating_point() and tensor.dim() >= 2 and tensor.numel() > 1
        else tensor
        for name, tensor in state.items()
    }
