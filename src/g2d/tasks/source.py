"""Where a task comes from: the object, or a name that each process loads once; its digest."""

from __future__ import annotations

import hashlib

import numpy as np

from g2d.tasks.attack import note_of
from g2d.tasks.builtin import load_task
from g2d.tasks.task import Task

TaskSource = Task | tuple[str, str, int, float]


def resolve(source: TaskSource) -> Task:
    """Return the task itself, loading it once per process where it is given by name."""
    if isinstance(source, Task):
        return source
    if source not in _LOADED:
        _LOADED.clear()
        name, data, seed, eps = source
        _LOADED[source] = load_task(name, data, seed, eps)
    return _LOADED[source]


_LOADED: dict[tuple[str, str, int, float], Task] = {}


def data_digest(task: Task) -> str:
    """SHA-256 of a task's splits: what ties a vault to its data."""
    sha = hashlib.sha256()
    for name in ("train", "guide", "gate", "test"):
        split = getattr(task.splits, name)
        for tensor in (split.x, split.y):
            sha.update(np.ascontiguousarray(tensor.numpy()).data)
    return sha.hexdigest()


def base_note(task: Task) -> dict[str, str]:
    """What a vault keeps of a task with its base: its data's digest, and how it is attacked."""
    return {"data": data_digest(task)} | note_of(task)
