"""Which inputs together show most single changes of weights, by what their gradients predict."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import grad, vmap

from g2d.protect.canaries.network import Network, leads

_MOST = 1 << 17  # weights that are counted; of larger networks so many are drawn
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
    left = torch.ones(seen.shape[1])
    taken = torch.zeros(len(x), dtype=torch.bool)
    while len(chosen) < min(count, len(x)):
        gain = (seen @ left).masked_fill(taken, -1.0)
        best = int(gain.argmax())
        if float(gain[best]) <= 0 and not bool((left == 1).all()):
            left = torch.ones_like(left)
            continue
        chosen.append(best)
        taken[best] = True
        left = left * (1 - seen[best])
    return torch.tensor(chosen, dtype=torch.int64)


def _flips_seen(network: Network, x: Tensor, generator: torch.Generator) -> Tensor:
    """Of which weights each input shows a flip of the sign by its label, (m, weights) of 0 and 1.

    The flip moves the lead of the highest logit m by about -2 w dm/dw: one gradient tells of all
    weights.
    """
    places = _places(network, generator)
    found = []
    for lead, slopes in _slopes(network, x):
        moved = [
            2 * (w * slope).reshape(len(lead), -1)[:, places[name]]
            for (name, w), slope in zip(network.weights.items(), slopes, strict=True)
        ]
        found.append(torch.cat(moved, 1) > _SURE * lead[:, None])
    return torch.cat(found).float()


def _slopes(network: Network, x: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Leads (n,) and their gradients by each weight (n, ...), of a part of the inputs at a time."""
    if sum(w.numel() for w in network.weights.values()) <= _MOST:
        try:  # of small networks ten times as fast
            found = together(network, x)
        except Exception:  # noqa: S110 — a branch on data, a recurrent layer: the slow way is right
            pass
        else:
            yield found
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


def _places(network: Network, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights that are counted, by flat index in their tensors."""
    total = sum(w.numel() for w in network.weights.values())
    if total <= _MOST:
        return {name: torch.arange(w.numel()) for name, w in network.weights.items()}
    return {
        name: torch.randint(w.numel(), (-(-w.numel() * _MOST // total),), generator=generator)
        for name, w in network.weights.items()
    }
