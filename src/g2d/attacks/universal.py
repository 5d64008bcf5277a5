"""One perturbation for all inputs, fitted on networks and data that the attacker has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from g2d.attacks.pgd import check_budget
from g2d.attacks.tables import is_region, through
from g2d.core.types import Bounds, Logits
from g2d.errors import SettingsError

CAP = 9.0  # nats; Shafahi et al. 2020 clip there, so that no single example takes the sum over


def universal(
    models: Logits | Sequence[Logits],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    generator: torch.Generator,
    bounds: Bounds = (0.0, 1.0),
    batch: int = 64,
    start: Tensor | None = None,
    drawn: int | None = None,
) -> Tensor:
    """Fit one perturbation that many inputs share (Moosavi-Dezfooli et al. 2017, arXiv 1610.08401).

    Signed gradient ascent over minibatches on the clipped cross-entropy (Shafahi et al. 2020, arXiv
    1811.11304, algorithm 2), summed over the models; the step falls from eps / 5 to zero.

    Args:
        models: one map from inputs (n, ...) to logits (n, classes), or several.
        x: the attacker's inputs, shape (n, ...). y: their labels, shape (n,).
        eps: largest absolute value of the perturbation, in units of `x`.
        steps: gradient steps, each on `batch` inputs drawn at random.
        generator: draws the batches.
        bounds: range of the data, or None where it has none.
        start: where the ascent begins, shape of one input; at zero, if None.
        drawn: models that each step draws at random (all of them, if None or fewer), so that many
            networks cost no more than a few.

    Returns:
        The perturbation, shape of one input; add it to any input and project.

    Raises:
        SettingsError: eps is negative or larger than the data range, no step is asked for, or
            there are no inputs.
    """
    check_budget(eps, steps, bounds)
    if not len(x):
        raise SettingsError("a universal perturbation is fitted on at least one input")
    ensemble = [models] if callable(models) else list(models)
    delta = torch.zeros_like(x[:1]) if start is None else _held(start[None], eps, bounds)
    for step in range(steps):
        index = torch.randint(len(x), (batch,), generator=generator)
        used = ensemble
        if drawn is not None and drawn < len(ensemble):
            order = torch.randperm(len(ensemble), generator=generator)[:drawn].tolist()
            used = [ensemble[place] for place in order]
        delta.requires_grad_(True)
        with torch.enable_grad():
            shifted = x[index] + delta
            if is_region(bounds):
                shifted = through(bounds, shifted, x[index], eps)
            elif bounds is not None:
                shifted = shifted.clamp(*bounds)
            losses = [F.cross_entropy(m(shifted), y[index], reduction="none") for m in used]
            loss = torch.stack(losses).clamp_max(CAP).sum()
        (gradient,) = torch.autograd.grad(loss, delta)
        size = 0.2 * eps * (1 - step / steps)
        delta = _held(delta.detach() + size * _move(gradient, eps, bounds), eps, bounds)
    return delta[0]


def _held(delta: Tensor, eps: float, bounds: Bounds) -> Tensor:
    """Clip the perturbation to what any feature may change."""
    if not is_region(bounds):
        return delta.clamp(-eps, eps)
    most = bounds.radius(eps, delta)
    return torch.minimum(torch.maximum(delta, -most), most)


def _move(gradient: Tensor, eps: float, bounds: Bounds) -> Tensor:
    """The steepest direction, in which each feature moves by its share of eps."""
    if not is_region(bounds) or not eps:
        return gradient.sign()
    return bounds.direction(gradient) * bounds.radius(eps, gradient) / eps
