"""CPU time of one step: plain, private by the product, and by Opacus' own engine, in turns."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from g2d import Settings, Task
from g2d.settings import HardenSettings
from g2d.training.loop import Batches
from g2d.training.recipes import HardenedTraining
from g2d.training.recipes.private import Private, PrivatePlan

STEPS = 4
"""Steps of one turn; the first of a training makes what the others use, and is counted in."""


def times(task: Task, settings: Settings, turns: int) -> dict[str, Any]:
    """Median CPU milliseconds of a step of `[privacy] batch` clean records, by who takes it."""
    ways: dict[str, Callable[[], None]] = {
        "plain": lambda: _ours(task, settings, None),
        "private": lambda: _ours(task, settings, settings.privacy.noise),
        "opacus": lambda: _opacus(task, settings),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, work in ways.items():
            began = time.process_time()
            work()
            if turn:  # the first turn warms caches up
                taken[name].append(1e3 * (time.process_time() - began) / STEPS)
    return {"milliseconds": {name: statistics.median(each) for name, each in taken.items()},
            "batch": settings.privacy.batch, "turns": turns}  # fmt: skip


def _ours(task: Task, settings: Settings, noise: float | None) -> None:
    """The product's loop; `noise`: None for plain training."""
    p = settings.privacy
    private = None if noise is None else Private(PrivatePlan(p, noise))
    batches = Batches(task, task.splits.train, p.batch, torch.Generator().manual_seed(0))
    training = HardenedTraining(
        task, HardenSettings(), batches, STEPS, seed=0, private=private
    )  # fmt: skip
    training.run(task.model(0), settings.population.rate)


def _opacus(task: Task, settings: Settings) -> None:
    """Opacus' engine, its hooks and its own Poisson sampler, without augmentation."""
    from opacus import PrivacyEngine

    p, train = settings.privacy, task.splits.train
    model = task.model(0).train()
    optimizer = torch.optim.Adam(model.parameters(), settings.population.rate)
    loader = DataLoader(TensorDataset(train.x, train.y), batch_size=min(p.batch, len(train)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer, loader = PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=p.noise,
            max_grad_norm=p.clip,
        )  # fmt: skip
        for step, (x, y) in enumerate(loader):
            if step == STEPS:
                break
            optimizer.zero_grad()
            task.loss_of(model(x), y).backward()
            optimizer.step()
