"""A task's model from a state dict, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from g2d.core.types import Logits
from g2d.tasks.splits import Split
from g2d.tasks.task import Task


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
