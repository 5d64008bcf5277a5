"""`g2d check`: look at a task before anything is trained; what is found is put into words here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2d.cli.console import duration, print_line, print_table
from g2d.cli.flags import Set, read_changes
from g2d.cli.shared import (
    DataFolder,
    TaskPath,
    asked_settings,
    configure_torch,
    task_path_again,
)

if TYPE_CHECKING:
    from g2d.defence.costs import Cost
    from g2d.defence.survey import Survey
    from g2d.tasks.task import Task

_SHOWN = 6


def check(
    task: Annotated[
        str, typer.Argument(metavar="MODULE:TASK", help="Your task, or the name of a built-in one.")
    ],
    data: DataFolder = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; --set overrides them.")
    ] = None,
    changes: Set = None,
    task_path: TaskPath = None,
) -> None:
    """Try a task in a second, say what was found, and estimate what its defence will cost."""
    given: dict[str, Any] = {"task__name": task, "task__data": None if data is None else str(data)}
    full = asked_settings(settings, {**given, **read_changes(changes or ())})
    configure_torch()
    from g2d.defence.opening import why_it_stays
    from g2d.defence.survey import check_all, survey
    from g2d.settings import Settings
    from g2d.tasks.placing import placed
    from g2d.tasks.source import resolve

    s = full.task
    found = placed(resolve((s.name, s.data, s.split_seed, s.eps)), s.device)
    check_all(found, full)
    surveyed = survey(found, full)
    _print_task(found)
    _print_model(surveyed)
    gates, n = full.gates, len(found.splits.gate)
    small = (
        ""
        if gates.accuracy_drop <= Settings().gates.accuracy_drop
        else f": {n} gate examples show no smaller drop"
    )
    print_line(
        f"gates        accuracy may fall by {gates.accuracy_drop:.1%}, a class by "
        f"{gates.class_drop:.1%}{small if not found.settings.get('gates') else ''}"
    )
    stays = why_it_stays(found) if s.name != found.name and ":" not in s.name else ""
    print_line(f"workers      {stays or 'it is found by its name in worker processes'}")
    print_table([_row(cost) for cost in surveyed.costs])
    print_line(
        "Estimates: one step of each kind, measured now, times the settings; a busy machine makes "
        "them larger."
    )
    print_line(f"Next: g2d population VAULT --task {task}{task_path_again(task_path)}")


def _print_task(task: Task) -> None:
    splits = task.splits
    x = splits.train.x
    names = [item.name for item in dataclasses.fields(splits)]  # they remember more than those
    sizes = ", ".join(f"{name} {len(getattr(splits, name))}" for name in names)
    bounds = "no bounds" if task.bounds is None else "bounds {:g} to {:g}".format(*task.bounds)
    shape, dtype = tuple(x.shape[1:]), str(x.dtype).removeprefix("torch.")
    print_line(f"task         {task.name}, {task.classes} classes")
    print_line(f"splits       {sizes}")
    own = task.attack_words or f"eps {task.eps:g}{' at most, by column' * bool(task.budget)}"
    print_line(f"input        {shape} {dtype}, {bounds}, {own}")
    print_line(f"loss         {_name(task.loss)}")
    print_line(f"augmentation {_name(task.augment) if task.augment else 'none'}")


def _print_model(found: Survey) -> None:
    entries = found.entries
    inside = [entry for entry in entries if entry.scoped]
    outside = [entry.name for entry in entries if entry.stays]
    print_line(f"parameters   {found.parameters:,}, in a state dict of {len(entries)} tensors")
    print_line(f"in scope     {_list([e.name for e in inside])}: {found.size:,} values")
    print_line(f"stays as is  {_list(outside) if outside else 'nothing'}")
    if found.layers:
        units = ", ".join(map(str, found.layers))
        print_line(f"alignment    works: hidden layers of {units} units")
    else:
        why = "its units lie partly out of scope" if found.hidden else "no plain chain of layers"
        print_line(f"alignment    none: {why}; distances are not aligned")


def _row(cost: Cost) -> dict[str, str]:
    return {
        "estimate": cost.stage,
        "CPU": "unknown" if cost.cpu is None else duration(cost.cpu),
        "on this machine": "unknown" if cost.wall is None else duration(cost.wall),
        "memory": "unknown" if cost.memory is None else _bytes(cost.memory),
        "disk": _bytes(cost.disk),
    }


def _bytes(count: int) -> str:
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", None) or type(thing).__name__)
