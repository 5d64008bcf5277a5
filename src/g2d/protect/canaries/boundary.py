"""Moves inputs: to where answers depend most on the weights, and to where two classes nearly tie.

Proposes; which of them are kept is decided in `choosing`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2d.protect.canaries.inputs import Inputs
from g2d.protect.canaries.network import Network, leads

_SHAKE = 0.01  # share by which weights are moved: first order, and far above rounding
_STEP = 0.1  # of each value's range; a smaller one at the end
HALVINGS = 20  # of a segment: what is left of it moves logits by far less than the margin
_STOPS = 12  # on a path of substitutions


def sharpen(
    network: Network, inputs: Inputs, steps: int, generator: torch.Generator
) -> Tensor:  # fmt: skip
    """Move inputs to where logits depend most on the weights; returns (m, ...).

    Ascends sum_w (w dz/dw)^2, the norm of He et al. (2019, "Sensitive-Sample Fingerprinting of Deep
    Neural Networks", equation 4) in units of each weight, which is what flips of signs move. With
    random signs r it is the mean of |z(x; w + s w r) - z(x; w)|^2 / s^2: all inputs of a batch at
    once, and no second derivatives.
    """
    x, span = inputs.x, inputs.high - inputs.low
    if bool(inputs.fixed.all()):
        return x
    free = (~inputs.fixed).to(x.dtype) * span
    for step in range(steps):
        shaken = network.shaken(_SHAKE, generator)
        with torch.enable_grad():
            moved = x.clone().requires_grad_(True)
            gap = (network(moved, shaken) - network(moved)).square().sum()
            (slope,) = torch.autograd.grad(gap, moved)
        share = _STEP * (1 - step / steps)
        x = inputs.clip(x + share * free * slope.sign())
    return x


@torch.no_grad()
def to_boundary(
    network: Network, inputs: Inputs, x: Tensor, margin: float, generator: torch.Generator
) -> Tensor:
    """Inputs whose highest logit leads by `margin` and hardly more; none where nothing is found.

    On the segment from each input to one of another class; where values are fixed, both have those
    of the first. Where all are, on a path that substitutes them one after another.
    """
    labels, lead = leads(network(x))
    order = torch.rand(len(x), len(x), generator=generator)
    order = order.masked_fill(labels[:, None] == labels, -1.0)
    partner = order.argmax(1)
    met = (order.amax(1) > 0) & (lead >= margin)
    begin, end, labels = x[met], x[partner[met]], labels[met]
    if not len(begin):
        return begin
    if bool(inputs.fixed.all()):
        return _on_paths(network, begin, end, margin, generator)
    end = torch.where(inputs.fixed, begin, end)
    other = leads(network(end))[0] != labels
    begin, end, labels = begin[other], end[other], labels[other]
    return _halved(network, inputs, begin, end, labels, margin) if len(begin) else begin


def _halved(
    network: Network, inputs: Inputs, begin: Tensor, end: Tensor, labels: Tensor, margin: float
) -> Tensor:
    """The farthest point of each segment found that has the label and leads by `margin`."""
    shape = (-1, *[1] * (begin.dim() - 1))
    near, far = torch.zeros(len(begin)), torch.ones(len(begin))

    def at(share: Tensor) -> Tensor:
        along = begin + share.view(shape).to(begin.dtype) * (end - begin)
        return inputs.clip(torch.where(inputs.fixed, begin, along))

    for _ in range(HALVINGS):
        middle = (near + far) / 2
        label, lead = leads(network(at(middle)))
        inside = (label == labels) & (lead >= margin)
        near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
    return at(near)


def _on_paths(
    network: Network, begin: Tensor, end: Tensor, margin: float, generator: torch.Generator
) -> Tensor:
    """The point of each path that leads by least, though by `margin`."""
    size = begin[0].numel()
    rank = torch.rand(len(begin), size, generator=generator).argsort(1)
    stops = torch.linspace(0, size, min(size, _STOPS) + 1).round().long()[:-1]
    taken = (rank[:, None] < stops[:, None]).view(len(begin), len(stops), *begin.shape[1:])
    points = torch.where(taken, end[:, None], begin[:, None])
    lead = leads(network(points.flatten(0, 1)))[1].view(len(begin), len(stops))
    lead = lead.masked_fill(lead < margin, torch.inf)
    return points[torch.arange(len(begin)), lead.argmin(1)]
