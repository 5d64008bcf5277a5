"""Expectation over transformation, over networks: an attack on whatever is drawn next.

It proposes; whoever scores calls `project` again and judges with its own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from g2d.attacks.pgd import check_budget, project
from g2d.core.types import Bounds, Logits
from g2d.errors import SettingsError

LOSSES = ("cross-entropy", "probability")


def eot_pgd(
    draw: Callable[[], Sequence[Logits]],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    generator: torch.Generator,
    bounds: Bounds = (0.0, 1.0),
    decay: float = 0.75,
    loss: str = "cross-entropy",
) -> Tensor:
    """Maximise the expected loss of a random network (Athalye et al. 2018, section 3.1).

    Every step draws networks anew and follows the sign of their mean gradient, accumulated with
    `decay` (MI-FGSM, arXiv 1710.06081: with few draws a step the momentum averages over steps too).
    The step size falls linearly from eps / 4, so that late steps average finely.

    Args:
        draw: returns the networks of one step, each a map from (n, ...) to logits (n, classes).
        x: clean inputs (n, ...), all attacked at once. y: their labels (n,).
        eps: radius of the L-infinity ball, in units of `x`. steps: gradient steps.
        loss: "cross-entropy", or "probability": the expected probability of an error, less the
            mean softmax probability of the true class. A network that already errs then counts no
            more, while its cross-entropy would go on growing.

    Returns:
        Proposed inputs, shape of `x`, inside ball and range.

    Raises:
        SettingsError: eps is negative or larger than the data range, no step is asked for, or the
            loss is unknown.
    """
    check_budget(eps, steps, bounds)
    if loss not in LOSSES:
        raise SettingsError(f"the loss is one of {', '.join(LOSSES)}, not {loss!r}")
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
    adversarial = project(x + (2 * noise - 1) * eps, x, eps, bounds)
    momentum = torch.zeros_like(x)
    for step in range(steps):
        gradient = torch.zeros_like(x)
        for model in draw():
            gradient += _gradient(model, adversarial, y, loss)
        scale = gradient.abs().flatten(1).mean(1).clamp_min(1e-30)
        momentum = decay * momentum + gradient / scale.view(-1, *[1] * (x.dim() - 1))
        size = eps / 4 * (1 - step / steps)
        adversarial = project(adversarial + size * momentum.sign(), x, eps, bounds)
    return adversarial


def _gradient(model: Logits, x: Tensor, y: Tensor, loss: str, batch: int = 500) -> Tensor:
    parts = []
    for part, label in zip(x.split(batch), y.split(batch), strict=True):
        inputs = part.detach().requires_grad_(True)
        with torch.enable_grad():
            total = _loss(model(inputs), label, loss)
        parts.append(torch.autograd.grad(total, inputs)[0])
    return torch.cat(parts)


def _loss(logits: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "probability":
        return -logits.softmax(1).gather(1, y.view(-1, 1)).sum()
    return F.cross_entropy(logits, y, reduction="sum")
