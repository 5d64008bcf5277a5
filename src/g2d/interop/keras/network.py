"""What a translated Keras model is made of: a plan of torch modules, and modules torch has not.

All take and give tensors as the plan says; none of them knows Keras.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Plan = Sequence[tuple[str, tuple[int, ...]]]
"""Steps in order: a module's name, and the values it takes: 0 is the input, k what step k gave."""


class Network(nn.Module):
    """A graph of modules. x (N, ...) in Keras' order, channels last, to logits (N, classes)."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]], plan: Plan, out: int) -> None:
        super().__init__()
        for name, module in modules:
            self.add_module(name, module)
        self._plan, self._out = tuple(plan), out
        last = {value: step for step, (_, given) in enumerate(plan, 1) for value in given}
        # What is wanted no more is let go, as a chain of modules would.
        self._done = [
            tuple(value for value, step in last.items() if step == at and value != out)
            for at in range(1, len(plan) + 1)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, ...)."""
        values = {0: x}
        for step, (name, given) in enumerate(self._plan, 1):
            module = self._modules[name]
            assert module is not None
            values[step] = module(*[values[value] for value in given])
            for value in self._done[step - 1]:
                del values[value]
        return values[self._out]


class Permute(nn.Module):
    """Another order of the axes."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """x with its axes in the other order."""
        return x.permute(self.axes)


class Reorder(nn.Module):
    """Another order of features (N, n), as a flattened image's: feature order[j] becomes j."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, n), reordered."""
        return x[:, self.get_buffer("order")]


class View(nn.Module):
    """Another shape of each example."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """x (N, ...) as (N, *shape)."""
        return x.reshape(len(x), *self.shape)


class Rescale(nn.Module):
    """scale · x + offset."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        """x, rescaled."""
        return x * self.scale + self.offset


class Merge(nn.Module):
    """Several values to one: "add", "subtract", "multiply", "maximum", "minimum", "average"."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """The values, merged in order."""
        for other in others:
            if self.kind in ("add", "average"):
                x = x + other
            elif self.kind == "subtract":
                x = x - other
            elif self.kind == "multiply":
                x = x * other
            else:
                x = torch.maximum(x, other) if self.kind == "maximum" else torch.minimum(x, other)
        return x / (1 + len(others)) if self.kind == "average" else x


class Concatenate(nn.Module):
    """Values beside each other along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *values: Tensor) -> Tensor:
        """The values, concatenated."""
        return torch.cat(values, self.axis)


def same(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """What TensorFlow's "same" pads before and after an axis: with stride 2 one more after."""
    steps = -(-size // stride) - 1
    total = max(steps * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _pad(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], value: float
) -> Tensor:
    """x (N, C, ...), padded as "same" asks of its size."""
    sizes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
    pads = [same(n, k, s, d) for n, k, s, d in sizes]
    return F.pad(x, [one for pair in reversed(pads) for one in pair], value=value)


class SameConv1d(nn.Conv1d):
    """A convolution padded as TensorFlow's "same"."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = _pad(x, self.kernel_size, self.stride, self.dilation, 0.0)
        return self._conv_forward(x, self.weight, self.bias)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same"."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = _pad(x, self.kernel_size, self.stride, self.dilation, 0.0)
        return self._conv_forward(x, self.weight, self.bias)


class SameMaxPool2d(nn.MaxPool2d):
    """The largest of each window, padded as TensorFlow's "same"."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        kernel, stride = _pair(self.kernel_size), _pair(self.stride)
        return F.max_pool2d(_pad(x, kernel, stride, (1, 1), -torch.inf), kernel, stride)


class SameAvgPool2d(nn.AvgPool2d):
    """The mean of each window, "same" as TensorFlow's: what is padded does not count."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        kernel, stride = _pair(self.kernel_size), _pair(self.stride)
        whole = F.avg_pool2d(_pad(x, kernel, stride, (1, 1), 0.0), kernel, stride)
        inside = _pad(torch.ones_like(x[:1, :1]), kernel, stride, (1, 1), 0.0)
        return whole / F.avg_pool2d(inside, kernel, stride)


def _pair(given: int | tuple[int, ...]) -> tuple[int, int]:
    one, other = (given, given) if isinstance(given, int) else given
    return one, other


class _AsKeras:
    """Batch norm as Keras has it: the variance that it keeps is the batch's own, not n/(n-1) of it.

    A layer that does not train uses and leaves its statistics, in training, too.
    """

    fixed = False

    def _kept(self, x: Tensor) -> Tensor:
        assert isinstance(self, nn.BatchNorm1d | nn.BatchNorm2d)
        if self.fixed or not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        assert self.running_var is not None
        assert self.momentum is not None
        # torch writes n/(n-1) of the batch's variance, into a copy: what it has written to, the
        # backward pass wants unchanged.
        written = self.running_var.clone()
        out = F.batch_norm(
            x, self.running_mean, written, self.weight, self.bias, True, self.momentum, self.eps
        )
        n = x.numel() // x.shape[1]
        with torch.no_grad():
            former = self.running_var * (1 - self.momentum)
            self.running_var.copy_(former + (written - former) * ((n - 1) / n))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return out


class KerasBatchNorm1d(_AsKeras, nn.BatchNorm1d):
    """Batch norm of (N, C) or (N, C, L); see `_AsKeras`."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._kept(x)


class KerasBatchNorm2d(_AsKeras, nn.BatchNorm2d):
    """Batch norm of (N, C, H, W); see `_AsKeras`."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._kept(x)
