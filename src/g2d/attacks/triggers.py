"""Trigger inversion: the smallest pattern is looked for that sends images to a class.

Neural Cleanse (Wang et al. 2019, IEEE S&P, section IV-B, DOI 10.1109/SP.2019.00031). Whether a
pattern is so small that somebody must have put it there is judged elsewhere (`defence.backdoors`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from g2d.core.adam import Adam
from g2d.tasks.splits import Split

_SUCCESS = 0.95  # share that a pattern has to send, before it is made smaller
_CHANGE = 1.5  # by which its weight is raised and lowered
_LOOK = 10  # steps between two looks at that


@dataclass(frozen=True)
class Trigger:
    """A pattern that sends images to a class.

    Attributes:
        mask: (h, w) from 0 to 1. size: its sum, in pixels. success: share of images of other
            classes that it sends there.
    """

    target: int
    mask: Tensor
    size: float
    success: float


def find_trigger(
    model: nn.Module,
    split: Split,
    target: int,
    bounds: tuple[float, float],
    steps: int,
    generator: torch.Generator,
) -> Trigger:
    """Look for the smallest mask m with a pattern p by which (1 - m) x + m p is of the target.

    The weight of |m|_1 rises while the pattern succeeds, and falls while it does not; the smallest
    mask that succeeded counts, else the last one.

    Args:
        model: in evaluation mode; it is left as it is. split: images (n, c, h, w) of all classes.
    """
    low, high = bounds
    others = split.take((split.y != target).nonzero().flatten())
    shape = others.x.shape[1:]
    raw_mask = torch.randn(shape[1:], generator=generator).requires_grad_(True)
    raw_pattern = torch.randn(shape, generator=generator).requires_grad_(True)
    optimiser = Adam([raw_mask, raw_pattern], 0.2)
    wanted = torch.full((len(others),), target)
    best: Trigger | None = None
    weight = 1e-3
    for step in range(steps):
        mask = torch.sigmoid(raw_mask)
        x = (1 - mask) * others.x + mask * (low + (high - low) * torch.sigmoid(raw_pattern))
        logits = model(x)
        loss = functional.cross_entropy(logits, wanted) + weight * mask.sum()
        success = float((logits.argmax(1) == target).float().mean())
        found = Trigger(target, mask.detach().clone(), float(mask.detach().sum()), success)
        if best is None or _better(found, best):
            best = found
        raw_mask.grad, raw_pattern.grad = torch.autograd.grad(loss, [raw_mask, raw_pattern])
        optimiser.step()
        if step % _LOOK == _LOOK - 1:
            weight = weight * _CHANGE if success >= _SUCCESS else weight / _CHANGE
    assert best is not None, "there is one step at least"
    return best


def _better(one: Trigger, other: Trigger) -> bool:
    if one.success >= _SUCCESS and other.success >= _SUCCESS:
        return one.size < other.size
    return one.success > other.success
