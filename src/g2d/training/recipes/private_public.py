"""Where private training begins: at fresh weights, or at what public records have taught them.

Public records are nobody's secret, so that this costs no epsilon; how good they are decides what it
is worth. Which records are public is in `tasks.shielded`.
"""

from __future__ import annotations

import torch
from torch import nn

from g2d.core.seeds import seed_of
from g2d.errors import SettingsError
from g2d.settings import PopulationSettings
from g2d.tasks.shielded import ShieldedSplits
from g2d.tasks.task import Task
from g2d.training.loop import Batches, clean_step, train


def check_public(task: Task, steps: int) -> None:
    """Refuse steps on public records of a task that keeps none apart.

    Raises:
        SettingsError: its guide split is people's as its train split is.
    """
    if steps and not isinstance(task.splits, ShieldedSplits):
        raise SettingsError(
            f"[privacy] public_steps = {steps} is of a vault's public data, and none are kept apart"
            f" in task {task.name!r}: name a folder in [privacy] public, or set public_steps = 0"
        )


def learn_public(
    task: Task, model: nn.Module, steps: int, settings: PopulationSettings, seed: int
) -> None:
    """Train a fresh model in place on the public guide split alone, plainly; 0 steps: not at all.

    The other half of what is public judges, and is not learned.

    Raises:
        SettingsError: as `check_public`. PopulationError: training diverged.
    """
    check_public(task, steps)
    if not steps:
        return
    source = torch.Generator().manual_seed(seed_of(seed, "public"))
    batches = Batches(task, task.splits.guide, settings.batch, source)
    train(model, clean_step(task, batches), steps=steps, rate=settings.rate)
