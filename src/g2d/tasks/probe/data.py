"""Labels and range of a task's data, checked against what the task says of them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from g2d.errors import DataError, TaskError
from g2d.tasks.attack import check_ids
from g2d.tasks.budget import Budget

if TYPE_CHECKING:
    from g2d.tasks.task import Task


def check_labels(task: Task) -> None:
    """Check that every label is one of the classes, and that the classes' names fit."""
    if isinstance(task.classes, bool) or not isinstance(task.classes, int) or task.classes < 2:
        raise TaskError(
            f"task {task.name!r}: classes is {task.classes!r}, expected an integer of at least 2 "
            "(a model of one logit has two classes)"
        )
    names = [str(name) for name in task.labels]
    if names and (len(names) != task.classes or len(set(names)) != len(names)):
        raise TaskError(
            f"task {task.name!r}: there are {len(names)} labels ({', '.join(names[:8])}) for "
            f"{task.classes} classes; expected a name of its own for each class"
        )
    for item in dataclasses.fields(task.splits):
        low, high = getattr(task.splits, item.name).y.aminmax()
        if low < 0 or high >= task.classes:
            raise DataError(
                f"task {task.name!r}: labels of the {item.name} split lie in [{int(low)}, "
                f"{int(high)}], expected [0, {task.classes - 1}]; number the classes from 0, or "
                "correct `classes`"
            )
    first, last = task.splits.train.y.aminmax()
    if first == last:
        raise DataError(
            f"task {task.name!r}: every training example has label {int(first)}; expected examples "
            "of at least two classes"
        )


def check_range(task: Task) -> None:
    """Check that bounds hold the data and that eps fits into them; ids have neither."""
    _check_metrics(task)
    if not task.splits.guide.x.is_floating_point():
        check_ids(task)
        object.__setattr__(task, "bounds", None)
        return
    if not 0 < task.eps < math.inf:
        raise TaskError(f"task {task.name!r}: eps is {task.eps}, expected a positive number")
    _check_budget(task)
    if task.bounds is None:
        return
    low, high = task.bounds
    if not -math.inf < low < high < math.inf:
        raise TaskError(
            f"task {task.name!r}: bounds are {task.bounds}, expected (least, largest), or None for "
            "unbounded data"
        )
    if task.eps > high - low:
        raise TaskError(
            f"task {task.name!r}: eps {task.eps:g} is larger than the data's range "
            f"{high - low:g} (bounds {low:g} to {high:g}); choose a smaller eps"
        )
    slack = 1e-6 * (high - low)
    for item in dataclasses.fields(task.splits):
        x = getattr(task.splits, item.name).x
        least, largest = (float(end) for end in x.aminmax())
        if least < low - slack or largest > high + slack:
            raise TaskError(
                f"task {task.name!r}: the {item.name} split has values from {least:g} to "
                f"{largest:g}, outside its bounds {low:g} to {high:g}; pass the bounds that hold, "
                "bounds=None if there are none, or normalise inside the model"
            )


def _check_metrics(task: Task) -> None:
    for name, metric in task.metrics.items():
        if not callable(metric):
            raise TaskError(
                f"task {task.name!r}: metric {name!r} is {type(metric).__name__}, expected a "
                "function of logits (N, classes) and labels (N,)"
            )


def _check_budget(task: Task) -> None:
    if task.budget is None:
        return
    if not isinstance(task.budget, Budget):
        raise TaskError(
            f"task {task.name!r}: the budget is {type(task.budget).__name__}, expected a "
            "g2d.tasks.budget.Budget"
        )
    for item in dataclasses.fields(task.splits):
        what = f"task {task.name!r}, the {item.name} split"
        task.budget.check(getattr(task.splits, item.name).x, what)
