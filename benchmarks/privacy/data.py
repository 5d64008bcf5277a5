"""People's records and declared public ones, of one task: what private vaults are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from g2d import Task, load_task
from g2d.core.seeds import seed_of
from g2d.tasks.readers import load_digits
from g2d.tasks.splits import Split, Splits

HELD, DIGITS = "held", "digits"
WAYS = (HELD, DIGITS)


def people_and_public(
    name: str, data: str, folder: Path, count: int, way: str = HELD, split_seed: int = 0
) -> tuple[Task, Path]:
    """A task without what is declared public, and the folder of that.

    Args:
        folder: where the public records are written, unless they are there. way: `held`: `count`
            records of the task's own train split are declared public and train nothing; `digits`:
            scikit-learn's digits, enlarged to the task's images, which are other people's.
    """
    task = load_task(name, data, split_seed)
    train, splits = task.splits.train, task.splits
    if way == HELD and count >= len(train):
        raise SystemExit(
            f"--public {count} of {len(train)} records of task {name!r} leaves nobody to train on:"
            " declare fewer public"
        )
    if way == HELD:
        source = torch.Generator().manual_seed(seed_of("public records"))
        order = torch.randperm(len(train), generator=source)
        public, people = train.take(order[:count]), train.take(order[count:].sort().values)
    else:
        public, people = enlarged(tuple(train.x.shape[1:])), train
    if not (folder / "y.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "x.npy", public.x.numpy())
        np.save(folder / "y.npy", public.y.numpy())  # last: both are there, then
    parts = Splits(people, splits.guide, splits.gate, splits.test)
    return replace(task, name=f"{name}-people", splits=parts), folder


def enlarged(shape: tuple[int, ...]) -> Split:
    """scikit-learn's digits, (n, 1, height, width): 5/7 of the image, as MNIST's lie in theirs."""
    splits = load_digits(0)
    parts = [splits.train, splits.guide, splits.gate, splits.test]
    x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    inner = round(shape[-1] * 5 / 7)
    large: Tensor = F.interpolate(x, (inner, inner), mode="bilinear")
    edge = shape[-1] - inner
    before = edge // 2
    return Split(F.pad(large, (before, edge - before, before, edge - before)).clamp(0, 1), y)
