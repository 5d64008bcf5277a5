"""Between a task's networks and the vectors that are sent: what moves, and back into a state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from g2d.core.types import Array, State
from g2d.errors import TaskError
from g2d.tasks.task import Task
from g2d.training.federated.form import Form
from g2d.training.layouts import layout_of


@dataclass(frozen=True)
class Networks:
    """A task's networks as vectors.

    Attributes:
        form: of what moves, each tied tensor once. ties: further names of tensors, each to its
            first. positive: names of running variances, which never get negative.
    """

    form: Form
    ties: Mapping[str, str]
    positive: frozenset[str]

    @classmethod
    def of(cls, task: Task) -> Networks:
        """Read the form off a task's model.

        Raises:
            TaskError: a tensor that moves is not float32.
        """
        layout, state = layout_of(task), task.model(0).state_dict()
        names = sorted(name for name in layout.in_scope() if name not in layout.ties)
        for name in names:
            if state[name].dtype != torch.float32:
                raise TaskError(
                    f"tensor {name!r} of task {task.name!r} is {state[name].dtype}, and clients "
                    "send float32 alone: build the model in float32 to train it with clients"
                )
        form = Form({name: tuple(state[name].shape) for name in names})
        positive = frozenset(name for name in names if name.endswith("running_var"))
        return cls(form, layout.ties, positive)

    def vector(self, state: State) -> Array:
        """What moves of a state, as a vector (P,) float32."""
        return self.form.join({n: state[n].detach().cpu().numpy() for n in self.form.shapes})

    def state(self, vector: Array, like: State) -> dict[str, Tensor]:
        """A state dict of a vector (P,); what does not move is as in `like`."""
        found = {name: tensor.detach().clone() for name, tensor in like.items()}
        for name, part in self.form.split(vector).items():
            tensor = torch.from_numpy(part.copy())
            found[name] = tensor.clamp_min(0.0) if name in self.positive else tensor
        for name, first in self.ties.items():
            if first in self.form.shapes:
                found[name] = found[first]
        return found


def check_plan(plan: Mapping[str, Any]) -> bool:
    """Whether a round's plan is one that a client follows: its numbers lie in their ranges."""
    steps, rate, momentum = (plan.get(name) for name in ("steps", "rate", "momentum"))
    batch, repelled = plan.get("batch"), plan.get("repelled")
    if not isinstance(repelled, list) or not all(isinstance(name, str) for name in repelled):
        return False
    whole = all(type(n) is int and 1 <= n <= 10**6 for n in (steps, batch))
    if not isinstance(rate, float) or not isinstance(momentum, float):
        return False
    return whole and 0 < rate <= 100 and 0 <= momentum < 1  # NaN lies in no range
