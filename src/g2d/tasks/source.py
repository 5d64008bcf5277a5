"""Where a task comes from: the object, or a name that each process loads once; its digest."""

from __future__ import annotations

import hashlib

import numpy as np

from g2d.errors import TaskError
from g2d.settings import TaskSettings
from g2d.tasks.builtin import BUILTIN, Blueprint, blueprint, load_task
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


def by_name(task: TaskSettings, data: str = "") -> tuple[str, str, int, float]:
    """How a process gets at the task that settings name; `data`: where its folder lies now.

    A task that was given as an object is made again by the function that made it, unless its own
    name already says which one that is.
    """
    known = task.name if ":" in task.name else task.origin or task.name
    return (known, data or task.data, task.split_seed, task.eps)


def is_named(name: str) -> bool:
    """Whether a task of this name can be loaded by it at all; else it is an object's own name."""
    return ":" in name or name in BUILTIN


def _says_itself(task: TaskSettings) -> bool:
    """Whether a task's name is what it is loaded by: not a user's that is named as one of ours."""
    return is_named(task.name) and by_name(task)[0] == task.name


def find(task: TaskSettings, data: str = "") -> Task:
    """Load the task that settings name.

    Raises:
        TaskError: a task that was given as an object cannot be made again; the message says where
            it came from and how to name it. Else what `load_task` raises.
    """
    if _says_itself(task):
        return resolve(by_name(task, data))
    advice = "Put it into a function of a file, and name that: `g2d population VAULT --task "
    advice += "module:function`, run where the module can be imported"
    if not task.origin:
        known = f" ({task.made_in})" if task.made_in else ""
        raise TaskError(
            f"the task {task.name!r} is none of ours: it was given as a Task object, and has no "
            f"name by which it could be found again{known}. {advice}; in Python, "
            "Defence.open(path, task=...)"
        )
    try:
        found = resolve(by_name(task, data))
    except TaskError as error:
        raise TaskError(
            f"the task {task.name!r} was made by {task.origin} in {task.made_in}, and is not found "
            f"there now: {error}. {advice}"
        ) from error
    if found.name != task.name:
        raise TaskError(
            f"{task.origin} makes a task {found.name!r} now, not {task.name!r}. {advice}"
        )
    return found


def blueprint_of(task: TaskSettings, data: str = "") -> Blueprint:
    """What answering needs of the task that settings name; raises what `find` does."""
    if _says_itself(task):
        return blueprint(*by_name(task, data))
    return Blueprint.of(find(task, data))


def data_digest(task: Task) -> str:
    """SHA-256 of a task's splits: what ties a vault to its data."""
    sha = hashlib.sha256()
    for name in ("train", "guide", "gate", "test"):
        split = getattr(task.splits, name)
        for tensor in (split.x, split.y):
            sha.update(np.ascontiguousarray(tensor.numpy()).data)
    return sha.hexdigest()
