"""Tasks of real clients' processes: of one task's records the share that each has.

`benchmarks.federated.shares:client_07` is the task of one client, as `g2d federated client` names
it; which task, how many clients, and how records are spread, is in the environment (`SHARES`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from g2d.settings import TaskSettings
from g2d.tasks.source import by_name, resolve
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.federated.records import shares

VARIABLE = "SHARES"


def of(index: int, told: Mapping[str, Any]) -> Task:
    """One client's task: its share of the records is all that it has of the train split."""
    task = resolve(by_name(TaskSettings(name=told["task"], data=told["data"])))
    train = task.splits.train
    part = shares(train.y.numpy(), told["clients"], told["alpha"], told["seed"])[index]
    return replace(task, splits=replace(task.splits, train=Split(train.x[part], train.y[part])))


def __getattr__(name: str) -> Callable[[], Task]:
    kind, _, index = name.partition("_")
    if kind != "client" or not index.isdecimal():
        raise AttributeError(name)
    return lambda: of(int(index), json.loads(os.environ[VARIABLE]))
