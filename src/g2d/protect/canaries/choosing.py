"""Which inputs together show most single changes of weights, by what their gradients predict."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import grad, vmap

from g2d.protect.canaries.network import Network, leads

LARGE = 1_000_000
"""Weights from which on a network is large: it takes fewer candidates, and fewer are counted."""

CELLS = 1 << 25
"""Candidates times weights counted, at most, a byte each."""

_MOST = 1 << 17  # weights that are counted; of larger networks so many are drawn
_FEW = 1 << 15  # of large ones
_AT_ONCE = 1 << 24  # values of gradients made at once, of small networks
_PART = 1 << 13  # weights that are summed at once
_SURE = 1.5  # margins that a flip must be predicted to take


def choose(
    network: Network, x: Tensor, count: int, generator: torch.Generator
) -> Tensor:  # fmt: skip
    """Places of `count` inputs that together show most flips of signs, in the order chosen.

    Greedy, as the maximum active neuron cover of He et al. (2019, section 4.3), but over flips and
    not neurons. Where all that can be seen is, a second cover begins.
    """
    seen = _flips_seen(network, x, generator)
    chosen: list[int] = []
    left = torch.ones(seen.shape[1], dtype=torch.bool)
    gain = seen.sum(1)
    taken = torch.zeros(len(x), dtype=torch.bool)
    while len(chosen) < min(count, len(x)):
        most, at = gain.masked_fill(taken, -1).max(0)
        best = int(at)
        if int(most) <= 0 and not bool(left.all()):
            left, gain = torch.ones_like(left), seen.sum(1)
            continue
        chosen.append(best)
        taken[best] = True
        for part in (left & seen[best]).nonzero()[:, 0].split(_PART):  # each weight once a cover
            gain = gain - seen[:, part].sum(1)
        left &= ~seen[best]
    return torch.tensor(chosen, dtype=torch.int64)


def counted(size: int, candidates: int) -> int:
    """How many of a network's `size` weights are counted for so many candidates, about."""
    return max(1, min(size, _MOST if size <= LARGE else _FEW, CELLS // max(1, candidates)))


def room(size: int, candidates: int) -> int:
    """Bytes of memory that choosing among so many candidates takes, about."""
    together = min(_AT_ONCE, candidates * size) if size <= _MOST else size
    return candidates * counted(size, candidates) + 4 * together


def _flips_seen(network: Network, x: Tensor, generator: torch.Generator) -> Tensor:
    """Of which weights each input shows a flip of the sign by its label, (m, weights) bool.

    The flip moves the lead of the highest logit m by about -2 w dm/dw: one gradient tells of all
    weights.
    """
    places = _places(network, len(x), generator)
    found = []
    for lead, slopes in _slopes(network, x):
        moved = [
            2 * (w * slope).reshape(len(lead), -1)[:, places[name]]
            for (name, w), slope in zip(network.weights.items(), slopes, strict=True)
        ]
        found.append(torch.cat(moved, 1) > _SURE * lead[:, None])
    return torch.cat(found)


def _slopes(network: Network, x: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Leads (n,) and their gradients by each weight (n, ...), of a part of the inputs at a time."""
    size = sum(w.numel() for w in network.weights.values())
    if size <= _MOST:
        parts = x.split(max(1, _AT_ONCE // max(1, size)))
        try:  # of small networks ten times as fast
            first = together(network, parts[0])
        except Exception:  # noqa: S110 — a branch on data, a recurrent layer: the slow way is right
            pass
        else:
            yield first
            yield from (together(network, part) for part in parts[1:])
            return
    for part in x.split(1):
        yield alone(network, part)


def together(network: Network, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Leads and gradients of all inputs at once, by vmap."""

    def lead(weights: dict[str, Tensor], one: Tensor) -> tuple[Tensor, Tensor]:
        found = leads(network(one[None], weights))[1][0]
        return found, found.detach()

    slope = vmap(grad(lead, has_aux=True), in_dims=(None, 0))
    slopes, found = slope(network.weights, x)
    return found, list(slopes.values())


def alone(network: Network, one: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Lead and gradients of a batch of one."""
    weights = {name: w.clone().requires_grad_(True) for name, w in network.weights.items()}
    with torch.enable_grad():
        lead = leads(network(one, weights))[1]
        slopes = torch.autograd.grad(
            lead.sum(), list(weights.values()), allow_unused=True, materialize_grads=True
        )
    return lead.detach(), [slope[None] for slope in slopes]


def _places(network: Network, candidates: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights that are counted, by flat index in their tensors."""
    total = sum(w.numel() for w in network.weights.values())
    most = counted(total, candidates)
    if total <= most:
        return {name: torch.arange(w.numel()) for name, w in network.weights.items()}
    return {
        name: torch.randint(w.numel(), (-(-w.numel() * most // total),), generator=generator)
        for name, w in network.weights.items()
    }
