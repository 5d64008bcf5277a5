"""Gradient inversion: records are looked for that give the update which a client has sent.

Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053, equation 4): what is fitted is the
direction of the gradient, with little total variation. The attacker is given the labels, the
network that the client began at, and how many records there are. How near the found ones come is
judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from g2d.core.adam import Adam
from g2d.errors import SettingsError
from g2d.tasks.task import Task


@dataclass(frozen=True)
class Inversion:
    """How records are looked for.

    Attributes:
        steps: of Adam on signs of gradients. rate: its step, as a share of the data's range.
        tv: weight of total variation. restarts: from other random images; the best fit counts.
    """

    steps: int = 400
    rate: float = 0.1
    tv: float = 1e-3
    restarts: int = 2


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of images (n, c, h, w)."""
    down, across = x.diff(dim=-2).abs().mean(), x.diff(dim=-1).abs().mean()
    return down + across


@dataclass(frozen=True)
class Local:
    """What the attacker takes the client's training for: SGD with Nesterov's momentum.

    Attributes:
        steps: over all records each; 1: the change is one gradient. rate: of each step.
    """

    steps: int = 1
    rate: float = 0.1
    momentum: float = 0.9


def gradients(task: Task, model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """The gradient of the loss over records (n, ...), differentiable by them, of each parameter."""
    return _gradients(task, model, dict(model.named_parameters()), x, y)


def _gradients(
    task: Task, model: nn.Module, at: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> list[Tensor]:
    loss = task.loss_of(functional_call(model, dict(at), (x,)), y)
    free = [p for p in at.values() if p.requires_grad]
    return list(torch.autograd.grad(loss, free, create_graph=True))


def moved(task: Task, model: nn.Module, x: Tensor, y: Tensor, local: Local) -> list[Tensor]:
    """The change of each parameter by local steps on records (n, ...), differentiable by them."""
    free = model.named_parameters()
    start: dict[str, Tensor] = {name: p for name, p in free if p.requires_grad}
    now, pace = dict(start), [torch.zeros_like(p) for p in start.values()]
    for _ in range(local.steps):
        found = _gradients(task, model, now, x, y)
        pace = [local.momentum * v + g for v, g in zip(pace, found, strict=True)]
        ahead = [g + local.momentum * v for g, v in zip(found, pace, strict=True)]
        now = {
            name: p - local.rate * d for (name, p), d in zip(now.items(), ahead, strict=True)
        }  # fmt: skip
    return [now[name] - p for name, p in start.items()]


def invert(
    task: Task,
    model: nn.Module,
    change: Sequence[Tensor],
    y: Tensor,
    generator: torch.Generator,
    how: Inversion = Inversion(),
    local: Local = Local(),
) -> Tensor:
    """Look for records of given labels which change the network as the client has.

        min_x 1 - <m(x), d> / (|m(x)| |d|) + tv TV(x)

    m is what `local` steps on x change: one gradient, turned round, or the client's own steps
    unrolled (the paper's section on federated averaging), for one who knows how it trains.

    Args:
        model: what the client began at, in the mode that it trains in; it is left as it is.
        change: d, of each parameter that is trained. y: labels (n,).

    Returns:
        records (n, ...) within the task's bounds, without a gradient.

    Raises:
        SettingsError: the data has no bounds, or is no images.
    """
    shape = tuple(task.splits.train.x.shape[1:])
    if task.bounds is None or len(shape) != 3:
        raise SettingsError("gradient inversion looks for images with bounds")
    low, high = task.bounds
    length = torch.stack([d.square().sum() for d in change]).sum().sqrt().clamp_min(1e-30)
    wanted = [d / length for d in change]

    def misfit(x: Tensor) -> Tensor:
        found = moved(task, model, x, y, local)
        norm = torch.stack([g.square().sum() for g in found]).sum().sqrt().clamp_min(1e-30)
        along = torch.stack([(g * w).sum() for g, w in zip(found, wanted, strict=True)]).sum()
        return 1 - along / norm

    falls = [how.steps * k // 8 for k in (3, 5, 7)]  # as the paper's code
    best, least = torch.empty(0), float("inf")
    for _ in range(how.restarts):
        x = low + (high - low) * torch.rand((len(y), *shape), generator=generator)
        x.requires_grad_(True)
        optimiser = Adam([x], how.rate * (high - low))
        for step in range(how.steps):
            loss = misfit(x) + how.tv * total_variation(x)
            (slope,) = torch.autograd.grad(loss, x)
            x.grad = slope.sign()
            optimiser.step()
            with torch.no_grad():
                x.clamp_(low, high)
            if step in falls:
                for group in optimiser.param_groups:
                    group["lr"] *= 0.1
        fit = float(misfit(x).detach())
        if fit < least:
            best, least = x.detach().clone(), fit
    return best
