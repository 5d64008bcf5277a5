"""Expectation over transformation, over networks: an attack on whatever is drawn next.

It proposes; whoever scores calls `project` again and judges with its own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from g2d.attacks.losses import Loss, find_loss
from g2d.attacks.pgd import check_budget, project
from g2d.attacks.tables import ascend, is_region
from g2d.core.devices import home_of
from g2d.core.types import Bounds, Logits
from g2d.errors import SettingsError

LOSSES = ("cross-entropy", "probability")
"""What the adaptive attackers sweep; `losses` has more."""


@dataclass(frozen=True)
class Tricks:
    """How a joint attack is made to transfer.

    Attributes:
        loss: one of `losses.LOSSES`. decay: share of the accumulated gradient that a step keeps
            (MI-FGSM, Dong et al. 2018, arXiv 1710.06081).
        hardest: weigh networks of a step, for each example, by softmax(-loss / hardest): those that
            still resist count most (min-max, Wang et al. 2021, arXiv 1906.03563). 0: all alike.
        diversity: probability that a step shrinks and shifts the images before a network sees them
            (Xie et al. 2019, arXiv 1803.06978). For images alone.
        smooth: width in pixels of the kernel that gradients are smoothed with (Dong et al. 2019,
            arXiv 1904.02884); odd, 0 or 1: off. For images alone.
    """

    loss: str = "cross-entropy"
    decay: float = 0.75
    hardest: float = 0.0
    diversity: float = 0.0
    smooth: int = 0

    @property
    def for_images(self) -> bool:
        """Whether one of them makes no sense but for images."""
        return self.diversity > 0 or self.smooth > 1


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
    tricks: Tricks | None = None,
) -> Tensor:
    """Maximise the expected loss of a random network (Athalye et al. 2018, section 3.1).

    Every step draws networks anew and follows the sign of their mean gradient, accumulated with
    `decay` (with few draws a step the momentum averages over steps too). The step size falls
    linearly from eps / 4, so that late steps average finely.

    Args:
        draw: returns the networks of one step, each a map from (n, ...) to logits (n, classes).
        x: clean inputs (n, ...), all attacked at once. y: their labels (n,), or with the loss
            "towards" the labels that the attack leads to.
        eps: radius of the L-infinity ball, in units of `x`. steps: gradient steps.
        loss: by name, of `losses.LOSSES`. tricks: what else helps it transfer; it then says loss
            and decay, too.

    Returns:
        Proposed inputs, shape of `x`, inside ball and range.

    Raises:
        SettingsError: eps is negative or larger than the data range, no step is asked for, the loss
            is unknown, or a trick is for images and `x` holds none.
    """
    tricks = tricks or Tricks(loss, decay)
    check_budget(eps, steps, bounds)
    _check(tricks, x)
    measure = find_loss(tricks.loss)
    shares = [0.25 * (1 - step / steps) for step in range(steps)]
    home = x.device
    if is_region(bounds):
        slope = _slope(draw, y.cpu(), measure, tricks)
        return ascend(slope, x.cpu(), bounds, eps, shares, generator, tricks.decay)[0].to(home)
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(home)
    adversarial = project(x + (2 * noise - 1) * eps, x, eps, bounds)
    momentum = torch.zeros_like(x)
    for step in range(steps):
        change = _Change.drawn(tricks.diversity, x, generator)
        models = draw()
        if step == 0:  # the search goes on where the networks are
            there = home_of(models, x)
            x, y, adversarial, momentum = (t.to(there) for t in (x, y, adversarial, momentum))
        found = [_gradient(model, adversarial, y, measure, change) for model in models]
        gradient = _smoothed(_weighed(found, tricks.hardest), tricks.smooth)
        scale = gradient.abs().flatten(1).mean(1).clamp_min(1e-30)
        momentum = tricks.decay * momentum + gradient / scale.view(-1, *[1] * (x.dim() - 1))
        size = eps / 4 * (1 - step / steps)
        adversarial = project(adversarial + size * momentum.sign(), x, eps, bounds)
    return adversarial.to(home)


def _slope(
    draw: Callable[[], Sequence[Logits]], y: Tensor, measure: Loss, tricks: Tricks
) -> Callable[[Tensor], Found]:
    """Losses and gradients of drawn networks at a point, for the search in a region."""

    def slope(point: Tensor) -> Found:
        found = [_gradient(model, point, y, measure, _Change()) for model in draw()]
        losses = torch.stack([each for each, _ in found]).sum(0)
        return losses, _weighed(found, tricks.hardest)

    return slope


def dirichlet(count: int, generator: torch.Generator) -> Tensor:
    """Weights (count,) of a mean, from Dirichlet(1, ..., 1): evenly over the simplex, float64."""
    drawn = -torch.rand(count, generator=generator, dtype=torch.double).clamp_min(1e-30).log()
    return drawn / drawn.sum()


def _check(tricks: Tricks, x: Tensor) -> None:
    if tricks.for_images and x.dim() != 4:
        raise SettingsError(
            f"input diversity and smoothing are for images (n, channels, height, width), not for "
            f"inputs of shape {tuple(x.shape[1:])}"
        )
    if tricks.smooth > 1 and tricks.smooth % 2 == 0:
        raise SettingsError(f"the smoothing kernel is of odd width, not {tricks.smooth}")


Found = tuple[Tensor, Tensor]
"""One network's losses (n,), and their gradient in the shape of the inputs."""


def _gradient(
    model: Logits, x: Tensor, y: Tensor, loss: Loss, change: _Change, batch: int = 500
) -> Found:
    losses, parts = [], []
    for part, label in zip(x.split(batch), y.split(batch), strict=True):
        inputs = part.detach().requires_grad_(True)
        with torch.enable_grad():
            each = loss(model(change(inputs)), label)
        parts.append(torch.autograd.grad(each.sum(), inputs)[0])
        losses.append(each.detach())
    return torch.cat(losses), torch.cat(parts)


def _weighed(found: Sequence[Found], hardest: float) -> Tensor:
    """The sum of the networks' gradients, or with `hardest` one weighed example by example."""
    total = torch.zeros_like(found[0][1])
    if not hardest:
        for _, gradient in found:
            total += gradient
        return total
    shares = torch.softmax(-torch.stack([losses for losses, _ in found]) / hardest, 0)
    for share, (_, gradient) in zip(shares, found, strict=True):
        total += share.view(-1, *[1] * (gradient.dim() - 1)) * gradient
    return total


def _smoothed(gradient: Tensor, width: int) -> Tensor:
    """Each channel smoothed by a Gaussian kernel of that width, of a third of it as deviation."""
    if width <= 1:
        return gradient
    at = torch.arange(width, dtype=gradient.dtype, device=gradient.device) - width // 2
    line = torch.exp(-0.5 * (at / (width / 3)).square())
    kernel = (line[:, None] * line[None, :] / line.sum() ** 2).expand(gradient.shape[1], 1, -1, -1)
    return F.conv2d(gradient, kernel, padding=width // 2, groups=gradient.shape[1])


@dataclass(frozen=True)
class _Change:
    """Shrink images to `size` (height, width) and put them at `corner`; None: leave them."""

    size: tuple[int, int] | None = None
    corner: tuple[int, int] = (0, 0)

    @classmethod
    def drawn(cls, probability: float, x: Tensor, generator: torch.Generator) -> _Change:
        """Draw one; nothing is drawn where the trick is off."""
        if not probability or float(torch.rand((), generator=generator)) >= probability:
            return cls()
        height, width = x.shape[-2:]
        share = 0.9 + 0.1 * float(torch.rand((), generator=generator))
        size = max(1, round(share * height)), max(1, round(share * width))
        corner = [
            int(torch.randint(whole - part + 1, (), generator=generator))
            for whole, part in zip((height, width), size, strict=True)
        ]
        return cls(size, (corner[0], corner[1]))

    def __call__(self, x: Tensor) -> Tensor:
        """Map (n, channels, height, width) to the same shape, differentiably."""
        if self.size is None:
            return x
        small = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        top, left = self.corner
        below, right = x.shape[-2] - top - self.size[0], x.shape[-1] - left - self.size[1]
        return F.pad(small, (left, right, top, below))
