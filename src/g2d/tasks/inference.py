"""A task's model from a state dict, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from g2d.core.devices import halving, home_of
from g2d.core.types import Logits
from g2d.tasks.splits import Split
from g2d.tasks.task import Task


@torch.no_grad()
def predict(model: Logits, x: Tensor, batch: int = 2000) -> Tensor:
    """Logits of a model on many inputs, shape (n, classes), without gradients.

    Raises:
        DeviceError: the model is on a device whose memory does not hold one example's.
    """

    def answers(size: int) -> Tensor:
        return torch.cat([model(part) for part in x.split(size)])

    device = str(home_of([model], x))
    return halving(answers, batch, device, "a forward pass", lambda: None)


def accuracy(model: Logits, split: Split) -> float:
    """Share of a split that the model classifies correctly."""
    return float((predict(model, split.x).argmax(1) == split.y).double().mean())


def load_model(task: Task, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a task's model from a state dict, in evaluation mode, its parameters frozen.

    It is on the task's device, and answers where it is asked.
    """
    model = task.model(0)
    model.load_state_dict(state)
    return task.placed(model.eval().requires_grad_(False))
