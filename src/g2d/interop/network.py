"""What a translated model is made of: a plan of torch modules, and plain modules torch has not.

All take and give tensors as the plan says; none knows the world that it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
