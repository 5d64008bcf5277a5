"""Pools: attacks crafted once on a model and kept beside it, by index into the split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from g2d.attacks.crafting import craft
from g2d.tasks.attack import BALL, NONE
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.weights.checkpoints import pack, unpack


def craft_pool(
    task: Task, model: Callable[[Tensor], Tensor], split: Split, size: int, steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Craft attacks on one model from `size` random examples of a split.

    Returns:
        attacks of shape (size, ...) and the indices into the split that they were made from; none
        where nothing attacks the task.
    """
    size = 0 if task.attack_kind == NONE else size
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(split), generator=generator)[:size]
    x, y = split.x[index], split.y[index]
    if not size:
        return x, index
    return craft(task, model, x, y, generator=generator, steps=steps), index


def compact(attacks: Tensor, task: Task) -> Tensor:
    """Halve the bytes of a pool where that moves an input by less than a hundredth of eps.

    Unbounded data, and data whose values are large beside eps, keep their precision: rounded, their
    attacks would leave the ball or vanish; what the task's own attack made is kept as it is. Token
    ids take four bytes each.
    """
    if not attacks.is_floating_point():
        return attacks.int()
    bounded = task.attack_kind == BALL and task.budget is None and task.bounds is not None
    fine = bounded and max(map(abs, task.bounds or ())) * 2**-11 < task.eps / 100
    return attacks.half() if fine else attacks


def pack_pool(attacks: Tensor, index: Tensor, task: Task) -> bytes:
    """Serialise a pool: attacks and the indices of the examples that they were made from."""
    return pack({"x": compact(attacks, task), "index": index})


def unpack_pool(data: bytes, split: Split) -> Split:
    """Read a pool back; labels come from the split that it was crafted on."""
    pool = unpack(data, "attack pool")
    return Split(pool["x"].to(split.x.dtype), split.y[pool["index"]])
