"""Attacks on tables: the searches of `pgd`, `eot`, `universal` and `query` inside a budget.

A search keeps a point that may lie between whole numbers and between categories (the latent), and
asks networks about what becomes of it once it is projected: steps below one half are not rounded
away, and a swap is made once the gradients of several steps speak for it. It proposes; whoever
scores projects again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from g2d.core.types import Bounds, Logits, Region

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps inputs (n, features) to losses (n,) and their gradients in the shape of the inputs."""


def is_region(bounds: Bounds) -> TypeIs[Region]:
    """Whether an attacker is bound by more than a ball in a range."""
    return bounds is not None and not isinstance(bounds, tuple)


def ascend(
    slope: Slope,
    x: Tensor,
    region: Region,
    eps: float,
    shares: Iterable[float],
    generator: torch.Generator,
    decay: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Follow gradients at projected points (straight-through, Bengio et al. 2013, arXiv 1308.3432).

    From a random start. Numbers follow signs, categories the gain of a swap (HotFlip, see
    `Budget.direction`).

    Args:
        slope: losses and gradients at a point.
        shares: the size of every step, as a share of each feature's radius.
        decay: share of the accumulated gradient that a step keeps; None: no momentum.

    Returns:
        The last point, and of all points before it the one of highest loss (the clean input where
        there is none), both inside the budget.
    """
    radius = region.radius(eps, x)
    noise = 2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1
    latent, momentum = region.clip(x + noise * radius, x, eps), torch.zeros_like(x)
    best, highest = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for share in shares:
        point = region.project(latent, x, eps)
        losses, gradient = slope(point)
        higher = losses.to(x.dtype) > highest
        best = torch.where(higher[:, None], point, best)
        highest = torch.where(higher, losses.to(x.dtype), highest)
        if decay is not None:
            # Radii carry the units: a byte and a rate count alike.
            scaled = gradient * radius
            size = scaled.abs().mean(1, keepdim=True)
            unit = gradient / size.clamp_min(torch.finfo(x.dtype).tiny)
            momentum = gradient = decay * momentum + unit
        move = region.direction(gradient) * radius
        latent = region.clip(latent + share * move, x, eps)
    return region.project(latent, x, eps), best


def ascend_jointly(
    ensemble: Sequence[Logits],
    x: Tensor,
    y: Tensor,
    region: Region,
    eps: float,
    steps: int,
    size: float,
    generator: torch.Generator,
    batch: int,
    decay: float | None,
) -> Tensor:
    """What `pgd` does on a table: the point of the highest summed cross-entropy that it met.

    With one step (FGSM, for training) the point where it leads, without a further forward pass.
    """
    parts = []
    for clean, label in zip(x.split(batch), y.split(batch), strict=True):

        def slope(point: Tensor, label: Tensor = label) -> tuple[Tensor, Tensor]:
            return _joint(ensemble, point, label)

        share = size / eps if eps else 0.0
        last, best = ascend(slope, clean, region, eps, [share] * steps, generator, decay)
        if steps > 1:
            with torch.no_grad():
                better = _losses(ensemble, last, label) >= _losses(ensemble, best, label)
            last = torch.where(better[:, None], last, best)
        parts.append(last)
    return torch.cat(parts) if parts else x.clone()


def _losses(ensemble: Sequence[Logits], x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(m(x), y, reduction="none") for m in ensemble]).sum(0)


def _joint(ensemble: Sequence[Logits], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    inputs = x.detach().requires_grad_(True)
    with torch.enable_grad():
        losses = _losses(ensemble, inputs, y)
        (gradient,) = torch.autograd.grad(losses.sum(), inputs)
    return losses.detach(), gradient


def through(region: Region, latent: Tensor, x: Tensor, eps: float) -> Tensor:
    """Project with the gradient of the identity."""
    return latent + (region.project(latent.detach(), x, eps) - latent).detach()


def subset(
    best: Tensor, x: Tensor, eps: float, share: float, region: Region, generator: torch.Generator
) -> Tensor:
    """Set a random share of the features of each row to an end of its budget: `query`'s square.

    Neighbouring columns have nothing to do with each other, so any subset is a square here; a
    category in it is swapped for one drawn at random. All tensors are (n, features).
    """
    count = max(1, round(share * x.shape[1]))
    places = torch.rand(x.shape, generator=generator).argsort(1)[:, :count]
    inside = torch.zeros(x.shape, dtype=torch.bool).scatter(1, places, True)
    signs = 2.0 * torch.randint(0, 2, x.shape, generator=generator).to(x.dtype) - 1.0
    noise = 1.0 + torch.rand(x.shape, generator=generator, dtype=x.dtype)
    ends = x + signs * noise * region.radius(eps, x)
    return region.project(torch.where(inside, ends, best), x, eps)
