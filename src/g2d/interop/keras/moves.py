"""How a Keras variable and a torch tensor hold the same numbers, there and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from g2d.core.types import State


@dataclass(frozen=True, eq=False)
class Move:
    """One variable, `index` in Keras' order of weights, and the tensor `name` of the torch module.

    Attributes:
        order: of the variable's first axis: what comes from a flattened image is numbered with its
            channels last there, and first here. axes: the tensor's, as the variable has them.
        shape: the tensor's, where axes are joined; None: as it is then.
    """

    index: int
    name: str
    order: Tensor | None = None
    axes: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None

    def to_torch(self, value: Tensor) -> Tensor:
        """The tensor of a variable's value."""
        return self.seen(value).contiguous()

    def seen(self, value: Tensor) -> Tensor:
        """The same as `to_torch`, in the variable's own memory where that is possible."""
        value = value if self.order is None else value[self.order]
        value = value.permute(self.axes) if self.axes else value
        return value if self.shape is None else value.reshape(self.shape)

    def to_keras(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """The variable's value, of its shape, from the tensor; undoes `to_torch`."""
        if self.axes:
            tensor = tensor.reshape([shape[axis] for axis in self.axes])
            back = sorted(range(len(self.axes)), key=lambda place: self.axes[place])
            tensor = tensor.permute(back)
        tensor = tensor.reshape(tuple(shape))
        return (tensor if self.order is None else tensor[self.order.argsort()]).contiguous()


def as_state(moves: Sequence[Move], values: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors by torch's names, of all variables' values in Keras' order."""
    return {move.name: move.to_torch(values[move.index]) for move in moves}


def as_values(moves: Sequence[Move], state: State, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Values in Keras' order of variables with these shapes, from a state dict."""
    found: Mapping[int, Tensor] = {
        move.index: move.to_keras(state[move.name].detach(), shapes[move.index]) for move in moves
    }
    assert sorted(found) == list(range(len(shapes))), "a variable has no tensor"
    return [found[index] for index in range(len(shapes))]
