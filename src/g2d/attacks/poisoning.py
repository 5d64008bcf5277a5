"""Poisoning: a BadNets trigger (Gu, Dolan-Gavitt and Garg 2017, arXiv 1708.06733), made by ART.

Some training examples get a small pattern in a corner and the attacker's label; a network trained
on them answers with that label wherever the pattern appears. How often it does is judged elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from g2d.errors import DataError, SettingsError
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

_LEAST = 5  # pixels that an image needs for the pattern of 3 and its distance of 2 from the edge


def trigger(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Put ART's four-pixel checkerboard near the lower right corner of images.

    Its distance is a seventh of the height: at the paper's 2 of 28 pixels most of it is invisible
    to the built-in MNIST model, whose pooling drops the last row (success 12 % in place of 83 %).

    Args:
        x: images (n, channels, height, width). bounds: range of the data; the pattern has its
            largest value.

    Returns:
        new images, shape of `x`.

    Raises:
        DataError: the inputs are not images, or too small for the pattern.
    """
    from art.attacks.poisoning.perturbations import add_pattern_bd

    if x.dim() != 4 or min(x.shape[2:]) < _LEAST:
        raise DataError(
            f"a trigger needs images (n, channels, height, width) of at least {_LEAST} pixels, "
            f"not {tuple(x.shape)}"
        )
    distance = max(2, x.shape[2] // 7)
    stamped = add_pattern_bd(x.numpy(), distance, bounds[1], channels_first=True)
    return torch.from_numpy(np.ascontiguousarray(stamped))


def poisoned(
    split: Split, fraction: float, target: int, task: Task, generator: torch.Generator
) -> Split:
    """Give a share of a split's examples of other classes the trigger and the target's label.

    Args:
        fraction: poisoned examples as a share of the whole split; at most all of other classes.

    Raises:
        SettingsError: fraction lies outside (0, 1], or the data has no bounds.
        DataError: the inputs are not images.
    """
    from art.attacks.poisoning import PoisoningAttackBackdoor

    if not 0 < fraction <= 1 or task.bounds is None:
        raise SettingsError(
            f"poisoning needs a fraction in (0, 1] of data with bounds, not {fraction} of data "
            f"with bounds {task.bounds}"
        )
    bounds = task.bounds
    others = (split.y != target).nonzero().flatten()
    order = torch.randperm(len(others), generator=generator)
    chosen = others[order[: max(1, round(fraction * len(split)))]]
    attack = PoisoningAttackBackdoor(lambda x: trigger(torch.from_numpy(x), bounds).numpy())
    label = np.eye(task.classes)[target]
    images, labels = attack.poison(split.x[chosen].numpy(), label, broadcast=True)
    x, y = split.x.clone(), split.y.clone()
    x[chosen] = torch.from_numpy(images).to(x.dtype)
    y[chosen] = torch.from_numpy(labels.argmax(1))
    return Split(x, y)


def poisoned_task(
    task: Task, fraction: float, target: int, generator: torch.Generator, guide: bool = False
) -> Task:
    """Return the task with a poisoned train split, and with `guide` a poisoned guide split too."""
    splits = replace(
        task.splits, train=poisoned(task.splits.train, fraction, target, task, generator)
    )
    if guide:
        splits = replace(
            splits, guide=poisoned(task.splits.guide, fraction, target, task, generator)
        )
    return replace(task, splits=splits)
