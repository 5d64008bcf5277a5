"""The one training loop; what differs between recipes is the step function that it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from g2d.errors import PopulationError
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

StepLoss = Callable[[nn.Module], Tensor]


class NextStep(Enum):
    """How a training goes on after a step; AFRESH: without what the optimiser remembers."""

    GO_ON = 0
    AFRESH = 1
    END = 2


AfterStep = Callable[[nn.Module, float], NextStep]


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up over `warm_up` steps, then linear decay to zero: a factor in (0, 1]."""
    return min(1.0, (step + 1) / max(1, warm_up)) * (1.0 - step / steps)


def train(
    model: nn.Module, step: StepLoss, *, steps: int, rate: float, after: AfterStep | None = None
) -> nn.Module:
    """Minimise `step(model)` with Adam, in place, and return the model in evaluation mode.

    Args:
        after: called after each step with the model and the rate; says how it goes on.

    Raises:
        PopulationError: the loss is no longer finite (the rate is too high).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, rate)
    model.train()
    for index in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(index, steps, min(100, 1 + steps // 10))
        loss = step(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        turn = NextStep.GO_ON if after is None else after(model, optimizer.param_groups[0]["lr"])
        if turn is NextStep.END:
            break
        if turn is NextStep.AFRESH:
            optimizer.state.clear()
        if index % 50 == 0 and not bool(torch.isfinite(loss)):
            raise PopulationError(
                f"training diverged at step {index} (loss {float(loss.detach())}); lower the rate"
            )
    finite = all(bool(torch.isfinite(p).all()) for p in parameters)
    if not finite:
        raise PopulationError(
            "training ended in parameters that are not finite; lower the rate, or look at your own "
            "recipe if [harden] names one"
        )
    return model.eval()


@dataclass(frozen=True)
class Batches:
    """Draws random batches of a split, augmented as the task says."""

    task: Task
    split: Split
    size: int
    generator: torch.Generator

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return inputs (size, ...) and labels (size,)."""
        index = torch.randint(len(self.split), (self.size,), generator=self.generator)
        x, y = self.split.x[index], self.split.y[index]
        if self.task.augment is not None:
            x = self.task.augment(x, self.generator)
        return x, y


def clean_step(task: Task, batches: Batches) -> StepLoss:
    """Ordinary training: the task's loss on clean examples."""

    def step(model: nn.Module) -> Tensor:
        x, y = batches.draw()
        return task.loss(model(x), y)

    return step
