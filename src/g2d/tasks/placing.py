"""A task on a device: whether its model, its loss and its augmentation work there, tried at once.

What being on a device means for a model is in `core.devices`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from g2d.core.devices import CPU, memory_of, resolve
from g2d.core.imports import words
from g2d.errors import G2DError, TaskError
from g2d.tasks.task import Task


def placed(task: Task, name: str) -> Task:
    """The task with its networks on a device; on the CPU the task as it is.

    Args:
        name: what `core.devices.resolve` takes.

    Raises:
        DeviceError: the device is not there, or its memory is too small.
        TaskError: model, loss or augmentation do not work there.
    """
    device = resolve(name)
    if device in (CPU, task.device):
        return task
    made = _moved(task, device)
    _try_out(made)
    return made


def on_cpu(task: Task) -> Task:
    """The task with its networks on the CPU, whatever its settings say."""
    return task if task.device == CPU else _moved(task, CPU)


def _moved(task: Task, device: str) -> Task:
    made = replace(task, device=device)
    object.__setattr__(made, "_origin", task.origin)
    return made


def _try_out(task: Task) -> None:
    """One step of two examples, as training takes it."""
    split, what = task.splits.train, "model"
    try:
        model = task.placed(task.model(0)).eval()
        with torch.random.fork_rng(devices=[]), memory_of(model, "a step of two examples"):
            what = "data or augmentation"
            x, y = split.x[:2].to(task.device), split.y[:2].to(task.device)
            if task.augment is not None:
                x = task.augment(x, torch.Generator().manual_seed(0))
            what = "model"
            logits = model(x)
            what = "loss"
            task.loss_of(logits, y)
    except G2DError:
        raise
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: its {what} does not work on {task.device!r}: {words(error)}. Make"
            " its tensors where its inputs are (x.device), after drawing them on the CPU; the model"
            " keeps its own as parameters or buffers"
        ) from error
