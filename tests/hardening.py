"""What the tests of hardening share: a short training, its robust accuracy, a step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from g2d.attacks import pgd
from g2d.settings import HardenSettings
from g2d.tasks.inference import predict
from g2d.tasks.task import Task
from g2d.training.loop import Batches
from g2d.training.recipes import HardenedTraining, Step


def trained(task: Task, settings: HardenSettings, steps: int = 250, **more) -> nn.Module:
    model, generator = task.model(0), torch.Generator().manual_seed(0)
    batches = Batches(task, task.splits.train, 64, generator)
    HardenedTraining(task, settings, batches, steps, seed=0, **more).run(model, rate=3e-3)
    return model.requires_grad_(False)


def robust(task: Task, model: nn.Module, eps: float | None = None, norm: str = "inf") -> float:
    x, y = task.splits.gate.x, task.splits.gate.y
    eps = task.eps if eps is None else eps
    draws = torch.Generator().manual_seed(1)
    found = pgd(model, x, y, eps=eps, steps=20, generator=draws, norm=norm)
    return float((predict(model, found).argmax(1) == y).double().mean())


def step_of(task: Task, settings: HardenSettings, **changes) -> Step:
    split = task.splits.train.take(range(8))
    model = task.model(0)
    step = Step(
        model, task, settings, task.eps, 0.5, torch.Generator().manual_seed(0), (), None,
        split.x, split.y, split.y, lambda z: F.cross_entropy(z, split.y),
    )  # fmt: skip
    return step.replace(**changes)
