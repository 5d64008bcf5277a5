"""What canaries begin as: inputs of the task's own form, and what keeps them valid."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from g2d.errors import TaskError
from g2d.protect.watermark.form import IMAGE, TABLE, InputForm
from g2d.protect.watermark.triggers import make_triggers
from g2d.tasks.task import Task


@dataclass(frozen=True, eq=False)
class Inputs:
    """Valid inputs to begin with, and which of their values may be moved, and how far.

    Attributes:
        x: (m, ...) in the task's dtype. low, high: range of each value, in the shape of one input.
        fixed: values that are taken from one valid input as they are (whole numbers, categories,
            token ids), bool in the shape of one input.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    fixed: Tensor

    @classmethod
    def of(cls, task: Task, count: int, seed: int) -> Inputs:
        """Draw inputs: examples of the guide split, and as many of noise where values are floats.

        Noise reaches weights that data leave alone, of pixels that are always black, say. Where
        inputs are unbounded their range is that of the guide split. Ids are not drawn: an id that
        never stands in a place may not be valid there.
        """
        generator = torch.Generator().manual_seed(seed)
        data = task.splits.guide.x
        rows = data[torch.randperm(len(data), generator=generator)[:count]]
        if not data.is_floating_point():
            every = torch.ones(data.shape[1:], dtype=torch.bool)
            return cls(rows, data.amin(0), data.amax(0), every)
        form = _form(task, data)
        low, high = _end(form.low, data[0]), _end(form.high, data[0])
        fixed = torch.zeros(form.size, dtype=torch.bool)
        fixed[[*form.integer, *(place for group in form.one_hot for place in group)]] = True
        key = hashlib.sha256(b"g2d canaries\0" + seed.to_bytes(8, "big")).digest()
        noise = make_triggers(key, form, count)[0].to(data.dtype)
        x = torch.cat([rows, noise])
        return cls(x, low, high, fixed.reshape(form.shape))

    def clip(self, x: Tensor) -> Tensor:
        """Bring moved inputs (n, ...) back into the range."""
        return torch.minimum(torch.maximum(x, self.low), self.high)


def _form(task: Task, data: Tensor) -> InputForm:
    """The form of a task's inputs; where a value has no range, that of the data."""
    flat = data.flatten(1).double()
    least, most = flat.amin(0), flat.amax(0)
    try:
        form = InputForm.of(task)
    except TaskError:
        kind = IMAGE if data.dim() > 2 else TABLE
        form = InputForm(kind, tuple(data.shape[1:]), task.classes, (-torch.inf,), (torch.inf,))
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (form.low, form.high))
    low = torch.where(low.isfinite(), low, least)
    high = torch.where(high.isfinite(), high, most)
    return replace(form, low=tuple(low.tolist()), high=tuple(high.tolist()))


def _end(ends: tuple[float, ...], like: Tensor) -> Tensor:
    """One end of the range as a tensor in the shape of one input."""
    return torch.tensor(ends, dtype=torch.float64).reshape(like.shape).to(like.dtype)
