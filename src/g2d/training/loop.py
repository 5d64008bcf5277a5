"""The one training loop: what is minimised, on which batches, by which optimiser, is given to it.

How recipes change a training is in `recipes`; which trainings a population is made of in
`population`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from g2d.core.adam import Adam
from g2d.core.devices import has_room, memory_of, mixed
from g2d.errors import PopulationError
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

Objective = Callable[[nn.Module], Tensor]
"""The loss of the next step, a scalar; each call draws anew."""

MakeOptimizer = Callable[[nn.Module, float], Optimizer]
"""Makes the optimiser of a model at its peak rate; it may give groups rates of their own."""

Between = Callable[[nn.Module, Optimizer], None]
"""Called between backward and step, without gradients: it may change what `.grad` holds."""


class NextStep(Enum):
    """How a training goes on after a step; AFRESH: without what the optimiser remembers."""

    GO_ON = 0
    AFRESH = 1
    END = 2


AfterStep = Callable[[nn.Module, float], NextStep]
"""Called after a step with the model and the rate; says how the training goes on."""


class BatchSource(Protocol):
    """Where a training takes its examples from."""

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return the next batch: inputs (n, ...) and labels (n,)."""


def adam(model: nn.Module, rate: float) -> Optimizer:
    """Adam over every parameter that is not frozen (Kingma & Ba 2015)."""
    return Adam([p for p in model.parameters() if p.requires_grad], rate)


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up over `warm_up` steps, then linear decay to zero: a factor in (0, 1]."""
    return min(1.0, (step + 1) / max(1, warm_up)) * (1.0 - step / steps)


def train(
    model: nn.Module,
    objective: Objective,
    *,
    steps: int,
    rate: float,
    optimizer: MakeOptimizer = adam,
    between: Sequence[Between] = (),
    after: AfterStep | None = None,
) -> nn.Module:
    """Minimise `objective(model)` in place, and return the model in evaluation mode.

    Args:
        rate: what the optimiser is made with; the schedule scales the rate of each of its groups.
        between: called in order between backward and step.
        after: called after each step.

    Raises:
        PopulationError: the loss is no longer finite (the rate is too high).
        DeviceError: a step needs more memory than the device has.
    """
    precision = mixed(model)
    descent = optimizer(model, rate)
    peaks = [group["lr"] for group in descent.param_groups]
    model.train()
    for index in range(steps):
        factor = schedule(index, steps, min(100, 1 + steps // 10))
        for group, peak in zip(descent.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        with memory_of(model, "a training step"):
            with precision():
                loss = objective(model)
            descent.zero_grad()
            loss.backward()
        with torch.no_grad():
            for hook in between:
                hook(model, descent)
        descent.step()
        following = after(model, descent.param_groups[0]["lr"]) if after else NextStep.GO_ON
        if following is NextStep.END:
            break
        if following is NextStep.AFRESH:
            descent.state.clear()
        if index % 50 == 0 and not bool(torch.isfinite(loss)):
            raise PopulationError(
                f"training diverged at step {index} (loss {float(loss.detach())}); lower the rate"
            )
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad):
        raise PopulationError(
            "training ended in parameters that are not finite; lower the rate, or look at your own "
            "recipe if [harden] names one"
        )
    return model.eval()


@dataclass(frozen=True)
class Batches:
    """Draws random batches of a split on the task's device, augmented as the task says."""

    task: Task
    split: Split
    size: int
    generator: torch.Generator

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return inputs (size, ...) and labels (size,), every example equally likely."""
        return self.at(torch.randint(len(self.split), (self.size,), generator=self.generator))

    def at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the examples at `index` (n,): inputs (n, ...), augmented, and labels (n,)."""
        data_x, data_y = self._data
        x, y = (part[index].to(self.task.device) for part in (data_x, data_y))
        if self.task.augment is not None:
            x = self.task.augment(x, self.generator)
        return x, y

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels, on the task's device if there is room."""
        x, y = self.split.x, self.split.y
        if not has_room(x.nbytes + y.nbytes, self.task.device):
            return x, y
        return x.to(self.task.device), y.to(self.task.device)


@dataclass(frozen=True)
class NewAndOld(Batches):
    """Draws from a split to whose end `added` examples came: a third of a batch of these, or more.

    A few hundred new examples beside tens of thousands would hardly be seen; and what they replace
    must not be forgotten: of half a batch, networks on NSL-KDD's shift won no more on new gate
    data than of a third, and lost twice as much on former ones.
    """

    added: int = 0

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return inputs (size, ...) and labels (size,); within a part all are equally likely."""
        if not self.added:
            return super().draw()
        n = len(self.split)
        new = max(self.size // 3, round(self.size * self.added / n))
        first = torch.randint(n - self.added, (self.size - new,), generator=self.generator)
        last = torch.randint(n - self.added, n, (new,), generator=self.generator)
        return self.at(torch.cat([first, last]))


def clean_step(task: Task, batches: BatchSource) -> Objective:
    """The objective of ordinary training: the task's loss on clean examples."""

    def loss(model: nn.Module) -> Tensor:
        x, y = batches.draw()
        return task.loss_of(model(x), y)

    return loss
