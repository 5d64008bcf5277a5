"""Projected gradient descent in an L-infinity or L2 ball, on one model or jointly on several.

It proposes; whoever scores calls `project` again and judges with its own forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from g2d.attacks.tables import ascend_jointly as ascend_tables
from g2d.attacks.tables import is_region
from g2d.core.devices import halving, home_of
from g2d.core.types import Bounds, Logits
from g2d.errors import SettingsError

Norm = str  # "inf" or "2"; `check_budget` refuses others


def project(
    adversarial: Tensor,
    x: Tensor,
    eps: float,
    bounds: Bounds,
    norm: Norm = "inf",
) -> Tensor:
    """Bring back into the ball of radius `eps` around `x` (n, ...), then into the data range.

    Clipping to a range that holds `x` never leads out of the ball again. Where `bounds` is a region
    (the budget of a table) it says what is near and what can be sent. Every judge calls this.
    """
    if is_region(bounds):  # it keeps its limits on the CPU
        return bounds.project(adversarial.cpu(), x.cpu(), eps).to(x.device)
    if norm == "2":
        delta = adversarial - x
        adversarial = x + delta * (eps / _length(delta).clamp_min(1e-12)).clamp_max(1.0)
    else:
        adversarial = torch.minimum(torch.maximum(adversarial, x - eps), x + eps)
    return adversarial if bounds is None else adversarial.clamp(*bounds)


def check_budget(
    eps: float,
    steps: int,
    bounds: Bounds,
    norm: Norm = "inf",
    size: int = 1,
) -> None:
    """Check what every attack is given; `size`: values an input has, which bounds an L2 budget.

    Raises:
        SettingsError: eps is negative, NaN or larger than the data range, steps is below 1, or the
            norm is unknown.
    """
    if norm not in ("inf", "2"):
        raise SettingsError(f"the norm is 'inf' or '2', not {norm!r}")
    if is_region(bounds) and norm == "2":
        raise SettingsError(
            "the norm is '2', and the task has a budget for each feature, which is of the "
            "inf-norm; set the norm to 'inf'"
        )
    widest = bounds[1] - bounds[0] if isinstance(bounds, tuple) else math.inf
    if norm == "2":
        widest *= math.sqrt(size)
    if not 0 <= eps <= widest:
        raise SettingsError(
            f"eps must lie between 0 and the data range ({widest:g} under the {norm}-norm), "
            f"not {eps}"
        )
    if steps < 1:
        raise SettingsError(f"an attack takes at least one step, not {steps}")


def pgd(
    models: Logits | Sequence[Logits],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    generator: torch.Generator,
    bounds: Bounds = (0.0, 1.0),
    step_size: float | None = None,
    batch: int = 500,
    decay: float | None = None,
    norm: Norm = "inf",
) -> Tensor:
    """Maximise the summed cross-entropy of `models` (Madry et al. 2018, equation 2.1).

    Several models are attacked jointly: the ensemble attacker who holds every exposed generation.
    With a `decay` the steps follow accumulated gradients, each divided by its mean absolute value
    over the example (MI-FGSM, Dong et al. 2018, arXiv 1710.06081, equation 6), which transfers
    better to other networks; the random start and the step size stay those of PGD.

    Args:
        models: one map from inputs (n, ...) to logits (n, classes), or several.
        x: clean inputs, shape (n, ...). y: their labels, shape (n,), or probabilities (n, classes).
        eps: radius of the ball, in units of `x`.
        steps: gradient steps, from a random start in the ball.
        generator: source of the random start.
        bounds: range of the data, or None where it has none, or the budget of a table: then the
            search is that of `tables.ascend`.
        step_size: units of `x` a step; default 2.5 · eps / steps, as in the paper.
        batch: inputs at a time.
        decay: mu, the share of the accumulated gradient that a step keeps; None: no momentum.
        norm: of the ball, "inf" or "2".

    Returns:
        Proposed inputs, shape of `x`, inside ball and range.

    Raises:
        SettingsError: eps is negative or larger than the data range, no step is asked for, or the
            decay is negative. DeviceError: one input does not fit the models' device.
    """
    check_budget(eps, steps, bounds, norm, x[:1].numel())
    if decay is not None and not decay >= 0:
        raise SettingsError(f"the decay of accumulated gradients is at least 0, not {decay}")
    ensemble = [models] if callable(models) else list(models)
    size = 2.5 * eps / steps if step_size is None else step_size
    if is_region(bounds):
        table = (x.cpu(), y.cpu(), bounds, eps, steps, size, generator, batch, decay)
        return ascend_tables(ensemble, *table).to(x.device)
    home, begun = home_of(ensemble, x), generator.get_state()

    def ascend(count: int) -> Tensor:
        parts = []
        for near, label in zip(x.split(count), y.to(home).split(count), strict=True):
            clean = near.to(home)
            found = _climb(ensemble, clean, label, eps, steps, size, bounds, decay, norm, generator)
            parts.append(found.to(x.device))
        return torch.cat(parts) if parts else x.clone()

    return halving(ascend, batch, str(home), "an attack", lambda: generator.set_state(begun))


def _climb(
    ensemble: Sequence[Logits], clean: Tensor, y: Tensor, eps: float, steps: int, size: float,
    bounds: Bounds, decay: float | None, norm: Norm, generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """A start and the steps of `pgd`, on inputs that fit the device together."""
    adversarial = _start(clean, eps, bounds, norm, generator)
    momentum = torch.zeros_like(clean)
    for _ in range(steps):
        gradient = _ascent(ensemble, adversarial, y)
        if decay is not None:
            momentum = gradient = decay * momentum + _unit(gradient)
        adversarial = adversarial.detach() + size * _direction(gradient, norm)
        adversarial = project(adversarial, clean, eps, bounds, norm)
    return adversarial


def _ascent(ensemble: Sequence[Logits], x: Tensor, y: Tensor) -> Tensor:
    """The gradient, in the shape of `x`, of the ensemble's summed cross-entropy."""
    x.requires_grad_(True)
    with torch.enable_grad():
        losses = [F.cross_entropy(model(x), y, reduction="sum") for model in ensemble]
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), x)
    return gradient


def _start(x: Tensor, eps: float, bounds: Bounds, norm: Norm, g: torch.Generator) -> Tensor:
    """A random point of the ball around each input, evenly drawn, clipped to the data range."""
    if norm == "2":
        direction = torch.randn(x.shape, generator=g, dtype=x.dtype).to(x.device)
        drawn = torch.rand(len(x), generator=g, dtype=x.dtype).to(x.device)
        radius = drawn ** (1 / max(1, x[0].numel()))
        noise = direction / _length(direction) * radius.view(-1, *(1 for _ in x.shape[1:]))
        return project(x + eps * noise, x, eps, bounds, norm)
    noise = torch.rand(x.shape, generator=g, dtype=x.dtype).to(x.device)
    return project(x + (2 * noise - 1) * eps, x, eps, bounds)


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest direction of length one in the norm (Madry et al. 2018, section 2.1)."""
    if norm == "2":
        return gradient / _length(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient.sign()


def _length(delta: Tensor) -> Tensor:
    """Euclidean length of each example (n, 1, ...)."""
    return delta.flatten(1).norm(dim=1).view(-1, *(1 for _ in delta.shape[1:]))


def _unit(gradient: Tensor) -> Tensor:
    """Divide each example's gradient by its mean absolute value; one of zeros stays zero."""
    size = gradient.abs().flatten(1).mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / size.view(-1, *(1 for _ in gradient.shape[1:]))


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    generator: torch.Generator,
    bounds: Bounds = (0.0, 1.0),
    norm: Norm = "inf",
) -> Tensor:
    """One step of 1.25 eps from a random start (Wong et al. 2020, arXiv 2001.03994).

    Made for training: cheap, crafted in evaluation mode so that batch norm does not learn from it.
    Shapes and errors as in `pgd`.
    """
    was_training = model.training
    model.eval()
    step_size, count = 1.25 * eps, max(1, len(x))
    found = pgd(
        model, x, y, eps=eps, steps=1, generator=generator, bounds=bounds, step_size=step_size,
        batch=count, norm=norm,
    )  # fmt: skip
    model.train(was_training)
    return found
