"""CPU time of a private step, beside the plain one and Opacus' own engine, in one run.

    python -m benchmarks.privacy.cost --task mnist --data FOLDER         # under a minute
    python -m benchmarks.privacy.cost --batch 128 --turns 2              # digits: a try

Turns alternate, so that what else the machine does falls on all alike; medians of turns. A step of
the base learns clean records. One of a fork also learns a light FGSM and, in private, PGD on
--against released networks, made in the step; the plain one draws as many attacks from pools, which
were made before and are not counted. Opacus' engine learns clean records by its hooks and its own
Poisson sampler. Its step against ours is of the same model, batch and optimiser.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import command
from benchmarks.common.results import record
from g2d.settings import HardenSettings, PrivacySettings
from g2d.tasks.builtin import load_task
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import Batches
from g2d.training.recipes import HardenedTraining, Private, PrivatePlan, fgsm_light, stale

RATE, LIGHT = 3e-3, 0.5
WAYS = ("plain", "private", "opacus", "plain fork", "private fork")
Work = Callable[[], None]


def measure(given: argparse.Namespace, _: Path) -> command.Result:
    """Median CPU milliseconds of a step, by way."""
    task = load_task(given.task, str(given.data or ""))
    privacy = PrivacySettings(
        enabled=True, records=len(task.splits.train), batch=given.batch, against=given.against
    )
    result = record(given)
    works = _works(task, privacy, given.steps)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(given.turns + 1):
        for name in WAYS:
            began = time.process_time()
            works[name]()
            if turn:  # the first one imports, and warms caches up
                taken[name].append(1e3 * (time.process_time() - began) / given.steps)
    return result | {"milliseconds": taken}


def _works(task: Task, privacy: PrivacySettings, steps: int) -> dict[str, Work]:
    released = [task.model(seed).eval().requires_grad_(False) for seed in range(privacy.against)]
    some = task.splits.train.take(range(min(2000, len(task.splits.train))))
    pools = [Split(some.x, some.y) for _ in released]
    light = partial(fgsm_light, LIGHT * task.eps)
    base = PrivatePlan(privacy, privacy.noise)
    fork = PrivatePlan(privacy, privacy.fork_noise, False, LIGHT * task.eps, released)

    def ours(**more: Any) -> Work:
        return partial(_ours, task, privacy.batch, steps, more)

    return {
        "plain": ours(),
        "private": ours(private=Private(base)),
        "opacus": lambda: _opacus(task, privacy, steps),
        "plain fork": ours(extra=(stale, light), pools=pools),
        "private fork": ours(private=Private(fork)),
    }


def _ours(task: Task, batch: int, steps: int, more: dict[str, Any]) -> None:
    draws = torch.Generator().manual_seed(0)
    batches = Batches(task, task.splits.train, batch, draws)
    training = HardenedTraining(task, HardenSettings(), batches, steps, seed=0, **more)
    training.run(task.model(0), RATE)


def _opacus(task: Task, privacy: PrivacySettings, steps: int) -> None:
    from opacus import PrivacyEngine

    train, model = task.splits.train, task.model(0).train()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    loader = DataLoader(TensorDataset(train.x, train.y), batch_size=min(privacy.batch, len(train)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own: no secure mode, and a hook of the first layer
        private, optimizer, loader = PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader,
            noise_multiplier=privacy.noise, max_grad_norm=privacy.clip,
        )  # fmt: skip
        done = 0
        while done < steps:
            for x, y in loader:
                optimizer.zero_grad()
                task.loss(private(x), y).backward()
                optimizer.step()
                done += 1
                if done == steps:
                    break


def rows(result: command.Result) -> Sequence[Sequence[object]]:
    """What was wanted, and what was found."""
    found = {name: statistics.median(each) for name, each in result["milliseconds"].items()}

    def times(name: str, by: str) -> str:
        return f"{found[name] / found[by]:.2f} × ({found[name]:.0f} ms)"

    return [
        ["private step, by the plain one", "≤ 3 ×", times("private", "plain")],
        ["Opacus' own engine, by the plain one", "rival", times("opacus", "plain")],
        ["private step of a fork, by the plain one", "≤ 3 ×", times("private fork", "plain fork")],
    ]


if __name__ == "__main__":
    flags = command.parser(__doc__)
    flags.add_argument("--task", default="digits")
    flags.add_argument("--data", type=Path)
    flags.add_argument("--batch", type=int, default=1024)
    flags.add_argument("--against", type=int, default=1)
    flags.add_argument("--steps", type=int, default=4, help="of each turn")
    flags.add_argument("--turns", type=int, default=5)
    command.carry_out("privacy-cost", flags, measure, rows)
