"""Where a task comes from: the object, or a name that each process loads once; its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from g2d.core.devices import CPU
from g2d.core.devices import resolve as resolve_device
from g2d.errors import TaskError
from g2d.settings import TaskSettings
from g2d.tasks.builtin import BUILTIN, Blueprint, blueprint, load_task
from g2d.tasks.keyed import unpack_records
from g2d.tasks.placing import placed
from g2d.tasks.planted import plant
from g2d.tasks.shielded import Shield
from g2d.tasks.task import Task

Named = tuple[str, str, int, float] | tuple[str, str, int, float, str]
"""What `load_task` takes; and the device, where that is not the CPU."""


class Planted(NamedTuple):
    """A task with the canaries of a privacy audit, as it travels to other processes."""

    name: str
    data: str
    seed: int
    eps: float
    canaries: bytes
    device: str = CPU


@dataclass(frozen=True)
class Shielded:
    """A task whose people are kept apart from public data, as it travels to other processes."""

    of: Named | Planted
    shield: Shield


@dataclass(frozen=True)
class Grown:
    """A task with records that refreshes have added, as it travels to other processes.

    Attributes:
        of: how the task itself is found. records: files of records, oldest first (`keyed`).
    """

    of: Named | Planted | Shielded
    records: tuple[bytes, ...] = field(repr=False)

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each file of records."""
        return tuple(hashlib.sha256(data).hexdigest() for data in self.records)


TaskSource = Task | Named | Planted | Shielded | Grown


def resolve(source: TaskSource) -> Task:
    """Return the task itself, loading it once per process where it is given by name."""
    if isinstance(source, Task):
        return source
    if isinstance(source, Grown):
        known = (source.of, source.digests)
        if known not in _GROWN:
            made = with_records(resolve(source.of), source.records)
            _GROWN.clear()
            _GROWN[known] = made
        return _GROWN[known]
    if isinstance(source, Shielded):
        if source not in _SHIELDED:
            made = source.shield.over(resolve(source.of))
            _SHIELDED.clear()
            _SHIELDED[source] = made
        return _SHIELDED[source]
    if source not in _LOADED:
        _LOADED.clear()
        task = placed(load_task(*source[:4]), device_of(source))
        _LOADED[source] = plant(task, source.canaries) if isinstance(source, Planted) else task
    return _LOADED[source]


_LOADED: dict[Named | Planted, Task] = {}
_GROWN: dict[Any, Task] = {}
_SHIELDED: dict[Shielded, Task] = {}


def with_canaries(task: Task, source: TaskSource, data: bytes) -> tuple[Task, TaskSource]:
    """A task with planted canaries (`planted`), and how other processes get at it.

    Raises:
        DataError: they are of another task.
    """
    made = plant(task, data)
    if not isinstance(source, tuple):
        return made, made
    found = Planted(*source[:4], data, device_of(source))
    _LOADED.clear()
    _LOADED[found] = made
    return made, found


def device_of(source: TaskSource) -> str:
    """The device that a task runs on, by how it is found."""
    if isinstance(source, Task | Planted):
        return source.device
    if isinstance(source, Shielded | Grown):
        return device_of(source.of)
    return source[4] if len(source) > 4 else CPU


def on_device(task: Task, source: TaskSource, name: str) -> tuple[Task, TaskSource]:
    """A task that runs on a device, and how other processes get at it.

    Args:
        name: as `[task] device` has it; the CPU leaves a task object where its maker put it.

    Raises:
        SettingsError, DeviceError, TaskError: as `placed`.
    """
    device = resolve_device(name)
    if device == CPU:
        return task, source
    made = placed(task, device)
    if not isinstance(source, tuple) or isinstance(source, Planted):
        return made, made
    found = (*source[:4], device)
    _LOADED.clear()
    _LOADED[found] = made
    return made, found


def with_records(task: Task, records: Sequence[bytes]) -> Task:
    """A task whose splits go on with the records of files, oldest first.

    Raises:
        DataError: a file is none of records, or does not fit the task.
    """
    splits = task.splits
    for data in records:
        splits = splits.with_more(unpack_records(data))
    if not records:
        return task
    grown = replace(task, splits=splits)
    object.__setattr__(grown, "_origin", task.origin)
    return grown


def unrenewed(source: TaskSource) -> Task | Named | Planted | Shielded:
    """How the task is found, without what refreshes have added to one that has a name."""
    return source.of if isinstance(source, Grown) else source


def named_by(source: TaskSource) -> Task | Named | Planted:
    """How the task itself is found, as nobody has changed it, where it has a name."""
    found = unrenewed(source)
    return found.of if isinstance(found, Shielded) else found


def travels(source: TaskSource) -> TypeGuard[Named | Planted | Shielded]:
    """Whether another process finds the task by a name; else the object itself has to go there."""
    return isinstance(source, tuple | Shielded)


def shielded(task: Task, source: TaskSource, shield: Shield) -> tuple[Task, TaskSource]:
    """A task with people's records kept apart, and how other processes get at it.

    Raises:
        PrivacyError, DataError: as `Shield.over`.
    """
    if isinstance(source, tuple):
        found = Shielded(source, shield)
        return resolve(found), found
    made = shield.over(task)
    return made, made


def by_name(task: TaskSettings, data: str = "") -> Named:
    """How a process gets at the task that settings name; `data`: where its folder lies now.

    A task that was given as an object is made again by the function that made it, unless its own
    name already says which one that is.
    """
    device, found = resolve_device(task.device), _plainly(task, data)
    return found if device == CPU else (*found, device)


def _plainly(task: TaskSettings, data: str = "") -> tuple[str, str, int, float]:
    """What `load_task` takes for the task that settings name."""
    known = task.name if ":" in task.name else task.origin or task.name
    return (known, data or task.data, task.split_seed, task.eps)


def is_named(name: str) -> bool:
    """Whether a task of this name can be loaded by it at all; else it is an object's own name."""
    return ":" in name or name in BUILTIN


def _says_itself(task: TaskSettings) -> bool:
    """Whether a task's name is what it is loaded by: not a user's that is named as one of ours."""
    return is_named(task.name) and _plainly(task)[0] == task.name


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
        return blueprint(*_plainly(task, data))
    return Blueprint.of(find(task, data))


def data_digest(task: Task) -> str:
    """SHA-256 of a task's splits: what ties a vault to its data."""
    sha = hashlib.sha256()
    for name in ("train", "guide", "gate", "test"):
        split = getattr(task.splits, name)
        for tensor in (split.x, split.y):
            sha.update(np.ascontiguousarray(tensor.numpy()).data)
    return sha.hexdigest()
