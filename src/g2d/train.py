"""The one training loop; what differs between recipes is the step function that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from g2d.data import Split
from g2d.errors import PopulationError
from g2d.tasks import Task

Logits = Callable[[Tensor], Tensor]
Step = Callable[[nn.Module], Tensor]


class Turn(Enum):
    """How a training goes on after a step; AFRESH: without what the optimiser remembers."""

    GO_ON = 0
    AFRESH = 1
    END = 2


After = Callable[[nn.Module, float], Turn]


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up over `warm_up` steps, then linear decay to zero: a factor in (0, 1]."""
    return min(1.0, (step + 1) / max(1, warm_up)) * (1.0 - step / steps)


def train(
    model: nn.Module, step: Step, *, steps: int, rate: float, after: After | None = None
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
        turn = Turn.GO_ON if after is None else after(model, optimizer.param_groups[0]["lr"])
        if turn is Turn.END:
            break
        if turn is Turn.AFRESH:
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


def clean_step(task: Task, batches: Batches) -> Step:
    """Ordinary training: the task's loss on clean examples."""

    def step(model: nn.Module) -> Tensor:
        x, y = batches.draw()
        return task.loss(model(x), y)

    return step


@torch.no_grad()
def predict(model: Logits, x: Tensor, batch: int = 2000) -> Tensor:
    """Logits of a model on many inputs, shape (n, classes), without gradients."""
    return torch.cat([model(part) for part in x.split(batch)])


def accuracy(model: Logits, split: Split) -> float:
    """Share of a split that the model classifies correctly."""
    return float((predict(model, split.x).argmax(1) == split.y).double().mean())


def load_model(task: Task, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a task's model from a state dict, in evaluation mode, its parameters frozen."""
    model = task.model(0)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
