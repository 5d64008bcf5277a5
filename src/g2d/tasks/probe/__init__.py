"""Is a task fit to be defended? Everything that is tried on it before anything is trained.

`check_task` is what `Task` runs when it is made: `data` looks at labels and range, `model` at what
the factory builds and answers, `training` at gradients and at a step of training, `state` at what
makes up the model. User code gets copies throughout, and each failure is one line. Whether a
task can travel, and what it will cost, is found out above this layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from g2d.tasks.attack import BALL, check_attack
from g2d.tasks.probe.data import check_labels, check_range
from g2d.tasks.probe.model import check_model
from g2d.tasks.probe.state import check_state
from g2d.tasks.probe.training import check_gradient, check_training

if TYPE_CHECKING:
    from g2d.tasks.task import Task

__all__ = ["check_gradient", "check_model", "check_state", "check_task", "check_training"]


def check_task(task: Task, batch: int) -> None:
    """Check that data, model, loss and augmentation of a task fit each other, in about a second.

    Args:
        batch: examples a training step, as `[population] batch` says.

    Raises:
        TaskError: they do not; DataError: a label lies outside [0, classes).
    """
    check_labels(task)
    check_attack(task)
    check_range(task)
    check_model(task)
    check_state(task)
    if task.attack_kind == BALL:  # others follow no gradient to the input, or take it elsewhere
        check_gradient(task)
    check_training(task, batch)
