"""Torch's layers as Keras and TensorFlow mean them: "same" padding, batch norm's own variance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def padded(self, x: Tensor) -> Tensor:
        """x (N, C, L), with what "same" puts around it."""
        return _pad(x, self.kernel_size, self.stride, self.dilation, 0.0)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._conv_forward(self.padded(x), self.weight, self.bias)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same"."""

    def padded(self, x: Tensor) -> Tensor:
        """x (N, C, H, W), with what "same" puts around it."""
        return _pad(x, self.kernel_size, self.stride, self.dilation, 0.0)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._conv_forward(self.padded(x), self.weight, self.bias)


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
        assert self.running_mean is not None
        assert self.running_var is not None
        out = self.normalised(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )
        if self.training and not self.fixed and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return out

    def normalised(
        self, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None,
        bias: Tensor | None, training: bool,
    ) -> Tensor:  # fmt: skip
        """x (N, C, ...) normalised; in training `mean` and `variance` (C,) move towards its own."""
        assert isinstance(self, nn.BatchNorm1d | nn.BatchNorm2d)
        if self.fixed or not training:
            return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)
        assert self.momentum is not None
        # torch writes n/(n-1) of the batch's variance, into a copy: what it has written to, the
        # backward pass wants unchanged.
        written = variance.clone()
        out = F.batch_norm(x, mean, written, weight, bias, True, self.momentum, self.eps)
        n = x.numel() // x.shape[1]
        with torch.no_grad():
            former = variance * (1 - self.momentum)
            variance.copy_(former + (written - former) * ((n - 1) / n))
        return out


class KerasBatchNorm1d(_AsKeras, nn.BatchNorm1d):
    """Batch norm of (N, C) or (N, C, L); see `_AsKeras`."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._kept(x)


class KerasBatchNorm2d(_AsKeras, nn.BatchNorm2d):
    """Batch norm of (N, C, H, W); see `_AsKeras`."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._kept(x)
