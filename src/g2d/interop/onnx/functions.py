"""Modules of functions that ONNX has as operators and torch has as functions.

Which operator becomes which is in `operators`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow,
    "Max": torch.maximum, "Min": torch.minimum, "MatMul": torch.matmul, "Erf": torch.erf,
    "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log, "Neg": torch.neg, "Abs": torch.abs,
    "Reciprocal": torch.reciprocal,
}  # fmt: skip


class Function(nn.Module):
    """A function of torch by the operator's name, of values and of one constant beside them.

    Args:
        constant: a number or tensor that is not trained. last: it comes behind the value.
    """

    def __init__(self, kind: str, constant: Tensor | None = None, last: bool = True) -> None:
        super().__init__()
        self.kind, self.last = kind, last
        self.register_buffer("constant", constant)

    def forward(self, *values: Tensor) -> Tensor:
        """What the function gives."""
        constant = getattr(self, "constant", None)
        if constant is not None:
            values = (*values, constant) if self.last else (constant, *values)
        return _FUNCTIONS[self.kind](*values)


class Reduce(nn.Module):
    """The mean, sum or largest over axes."""

    def __init__(self, kind: str, axes: tuple[int, ...], keep: bool) -> None:
        super().__init__()
        self.kind, self.axes, self.keep = kind, axes, keep

    def forward(self, x: Tensor) -> Tensor:
        """x without the axes."""
        if self.kind == "ReduceMean":
            return x.mean(self.axes, self.keep)
        if self.kind == "ReduceSum":
            return x.sum(self.axes, self.keep)
        return x.amax(self.axes, self.keep)


class Axes(nn.Module):
    """Axes of size 1, put in or taken out."""

    def __init__(self, kind: str, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.axes = kind, axes

    def forward(self, x: Tensor) -> Tensor:
        """x with other axes."""
        if self.kind == "Squeeze":
            return x.squeeze(self.axes)
        for axis in sorted(self.axes):
            x = x.unsqueeze(axis)
        return x


class Pads(nn.Module):
    """Zeros around the last axes, as `F.pad` takes them."""

    def __init__(self, pads: tuple[int, ...]) -> None:
        super().__init__()
        self.pads = pads

    def forward(self, x: Tensor) -> Tensor:
        """x, padded."""
        return F.pad(x, self.pads)
