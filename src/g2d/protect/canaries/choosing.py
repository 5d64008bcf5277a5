"""Which inputs together show most single changes of weights, by what their gradients predict."""

from __future__ import annotations

import torch
from torch import Tensor

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
    weights = {name: w.clone().requires_grad_(True) for name, w in network.weights.items()}
    rows = []
    for one in x.split(1):
        with torch.enable_grad():
            _, lead = leads(network(one, weights))
            slopes = torch.autograd.grad(lead.sum(), list(weights.values()), allow_unused=True)
        found = []
        for (name, w), slope in zip(weights.items(), slopes, strict=True):
            moved = torch.zeros_like(w) if slope is None else 2 * w.detach() * slope
            found.append(moved.flatten()[places[name]] > _SURE * float(lead))
        rows.append(torch.cat(found).float())
    return torch.stack(rows)


def _places(network: Network, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights that are counted, by flat index in their tensors."""
    total = sum(w.numel() for w in network.weights.values())
    if total <= _MOST:
        return {name: torch.arange(w.numel()) for name, w in network.weights.items()}
    return {
        name: torch.randint(w.numel(), (-(-w.numel() * _MOST // total),), generator=generator)
        for name, w in network.weights.items()
    }
