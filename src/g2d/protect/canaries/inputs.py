"""What canaries begin as: inputs of the task's own form, and what keeps them valid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from g2d.errors import TaskError
from g2d.protect.watermark.form import IMAGE, TABLE, InputForm
from g2d.tasks.task import Task

_CELLS = 7  # a side of the grid that an image's noise is drawn on


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

        Noise reaches weights that data leave alone, of pixels that are always black, say. It keeps
        to what the guide split's values range over: of an image all together, of a table each by
        itself. Columns that hold whole numbers alone may be codes, and are not moved; nor are ids:
        one that never stands in a place may not be valid there.
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
        if data.dim() <= 2:
            fixed |= (data == data.round()).all(0)
        fixed = fixed.reshape(form.shape)
        noise = low + _noise(rows, generator) * (high - low)
        return cls(torch.cat([rows, torch.where(fixed, rows, noise)]), low, high, fixed)

    def clip(self, x: Tensor) -> Tensor:
        """Bring moved inputs (n, ...) back into the range."""
        return torch.minimum(torch.maximum(x, self.low), self.high)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1) in the shape of inputs; of images smooth, for pixels vanish in pools."""
    if like.dim() <= 2:
        return torch.rand(like.shape, generator=generator, dtype=like.dtype)
    *axes, height, width = like.shape
    count = torch.Size(axes).numel()
    grid = torch.rand(count, 1, _CELLS, _CELLS, generator=generator, dtype=like.dtype)
    return F.interpolate(grid, (height, width), mode="bilinear").reshape(like.shape)


def _form(task: Task, data: Tensor) -> InputForm:
    """The form of a task's inputs; its range is no wider than that of the data."""
    flat = data.flatten(1).double()
    least, most = flat.amin(0), flat.amax(0)
    try:
        form = InputForm.of(task)
    except TaskError:
        kind = IMAGE if data.dim() > 2 else TABLE
        form = InputForm(kind, tuple(data.shape[1:]), task.classes, (-torch.inf,), (torch.inf,))
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (form.low, form.high))
    if data.dim() > 2:  # pixels that are always black are given noise, too
        bounded = low.isfinite() & high.isfinite()
        least = torch.where(bounded, least.min(), least)
        most = torch.where(bounded, most.max(), most)
    low, high = torch.maximum(low, least), torch.minimum(high, most)
    return replace(form, low=tuple(low.tolist()), high=tuple(high.tolist()))


def _end(ends: tuple[float, ...], like: Tensor) -> Tensor:
    """One end of the range as a tensor in the shape of one input."""
    return torch.tensor(ends, dtype=torch.float64).reshape(like.shape).to(like.dtype)
