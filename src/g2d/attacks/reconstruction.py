"""Reconstruction: a network is looked for that gives the answers which another one gave.

The network is a function of few coordinates, and these are fitted by gradient. How near it comes,
and what attacks on it are worth, is for the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from g2d.core.adam import Adam
from g2d.errors import DataError, SettingsError

Run = Callable[[Tensor, Tensor], Tensor]
"""Maps coordinates (d,) and inputs (m, ...) to logits (m, classes), differentiable by the first."""


@dataclass(frozen=True)
class Answers:
    """What an API said: inputs (n, ...) and logits (n, classes), each up to a constant of its own.

    So the logarithm of probabilities is as good as logits.
    """

    x: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, places: Tensor) -> Answers:
        """Some of them."""
        return Answers(self.x[places], self.logits[places])

    def split(self) -> tuple[Answers, Answers]:
        """Return (what is fitted, every fifth: what tells the better fit).

        Raises:
            DataError: there are fewer than two.
        """
        if len(self) < 2:
            raise DataError(f"a fit needs at least two answers, not {len(self)}")
        held = torch.arange(len(self)) % 5 == 1
        return self.take((~held).nonzero()[:, 0]), self.take(held.nonzero()[:, 0])


def misfit(logits: Tensor, answers: Tensor) -> Tensor:
    """How far logits (n, classes) are from answers (n, classes): 0 the same, 1 as far as nothing.

    ‖c(l) − c(a)‖² / ‖c(a)‖² over all inputs, where c takes the mean off every row. Differentiable.
    """
    wanted = answers - answers.mean(1, keepdim=True)
    apart = logits - logits.mean(1, keepdim=True) - wanted
    return apart.square().mean() / wanted.square().mean().clamp_min(1e-12)


def fit_coordinates(
    run: Run,
    start: Tensor,
    answers: Answers,
    *,
    steps: int,
    rate: float,
    generator: torch.Generator,
    batch: int = 128,
) -> Tensor:
    """Descend `misfit` by Adam, its rate decayed linearly to zero.

    Args:
        run: the network at some coordinates.
        start: coordinates (d,) to begin at. rate: of the first step, in units of coordinates.
        generator: draws the batches of answers.

    Returns:
        Coordinates (d,); the start, where a step led to what is no number.

    Raises:
        SettingsError: steps or rate are not positive.
    """
    if steps < 1 or not rate > 0:
        raise SettingsError(f"a fit takes steps and a rate above 0, not {steps} and {rate}")
    found = start.detach().clone().requires_grad_(True)
    optimizer = Adam([found], rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        chosen = torch.randperm(len(answers), generator=generator)[:batch]
        with torch.enable_grad():
            loss = misfit(run(found, answers.x[chosen]), answers.logits[chosen])
        (found.grad,) = torch.autograd.grad(loss, found)
        optimizer.step()
    return found.detach() if bool(found.isfinite().all()) else start.detach().clone()
