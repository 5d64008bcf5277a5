"""The layers of a chain as plain records: what a plan says of a network, without its weights.

Read from a network (`reading`) or from a plan's JSON; what shape each makes of its input is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from g2d.protect.homomorphic.errors import HomomorphicError, Unsupported

__all__ = ["Activation", "Conv", "Dense", "Flatten", "Layer", "Norm", "Pool", "from_rows",
           "shapes", "to_rows"]  # fmt: skip

Shape = tuple[int, int, int]
"""Channels, height and width; a vector of F numbers is (F, 1, 1)."""

MOST_LAYERS, MOST_SIDE, MOST_VALUES, MOST_NAME = 64, 4096, 1 << 16, 200
"""Bounds on what a plan may say: nothing larger fits into a ciphertext anyway."""


@dataclass(frozen=True)
class Layer:
    """One layer. `name` is its prefix in the state dict, and what messages call it."""

    kind: ClassVar[str] = ""
    linear: ClassVar[bool] = True

    name: str

    def output(self, shape: Shape, flat: bool) -> tuple[Shape, bool]:
        """The shape that it makes of `shape`, and whether that is a vector.

        Raises:
            Unsupported: it takes no such input.
        """
        raise NotImplementedError

    def fault(self, why: str) -> Unsupported:
        """An error that names this layer."""
        return Unsupported(f"layer {self.name!r} ({self.kind}) {why}")


@dataclass(frozen=True)
class Conv(Layer):
    """Conv2d: `channels` are those that it makes; pairs are of height and width."""

    kind: ClassVar[str] = "conv"

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    bias: bool

    def output(self, shape: Shape, flat: bool) -> tuple[Shape, bool]:
        """As torch.nn.Conv2d."""
        if flat:
            raise self.fault("comes after Flatten: put convolutions before it")
        reach = zip(shape[1:], self.kernel, self.padding, self.dilation, self.stride, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, d, s in reach)
        if min(height, width) < 1:
            raise self.fault(f"has a kernel larger than its input {shape}")
        return (self.channels, height, width), False


@dataclass(frozen=True)
class Dense(Layer):
    """Linear."""

    kind: ClassVar[str] = "dense"

    outputs: int
    bias: bool

    def output(self, shape: Shape, flat: bool) -> tuple[Shape, bool]:
        """As torch.nn.Linear, of vectors alone."""
        if not flat:
            raise self.fault(f"takes a vector, not {shape}: put Flatten before it")
        return (self.outputs, 1, 1), True


@dataclass(frozen=True)
class Pool(Layer):
    """AvgPool2d without padding."""

    kind: ClassVar[str] = "pool"

    kernel: tuple[int, int]
    stride: tuple[int, int]

    def output(self, shape: Shape, flat: bool) -> tuple[Shape, bool]:
        """As torch.nn.AvgPool2d."""
        if flat:
            raise self.fault("comes after Flatten: put pooling before it")
        sides = zip(shape[1:], self.kernel, self.stride, strict=True)
        height, width = ((n - k) // s + 1 for n, k, s in sides)
        if min(height, width) < 1:
            raise self.fault(f"has a window larger than its input {shape}")
        return (shape[0], height, width), False


@dataclass(frozen=True)
class Norm(Layer):
    """BatchNorm in eval mode: a factor and a summand for each channel, folded away."""

    kind: ClassVar[str] = "norm"

    eps: float
    affine: bool

    def output(self, shape: Shape, flat: bool) -> tuple[Shape, bool]:
        """The same."""
        return shape, flat


@dataclass(frozen=True)
class Flatten(Layer):
    """Flatten of all but the batch."""

    kind: ClassVar[str] = "flatten"

    def output(self, shape: Shape, flat: bool) -> tuple[Shape, bool]:
        """A vector in torch's order."""
        return (math.prod(shape), 1, 1), True


@dataclass(frozen=True)
class Activation(Layer):
    """a·x² + b·x + c; `fixed` are a, b and c, or None where they are learned, in the state."""

    kind: ClassVar[str] = "polynomial"
    linear: ClassVar[bool] = False

    fixed: tuple[float, float, float] | None

    def output(self, shape: Shape, flat: bool) -> tuple[Shape, bool]:
        """The same."""
        return shape, flat


_KINDS = {kind.kind: kind for kind in (Conv, Dense, Pool, Norm, Flatten, Activation)}


def shapes(layers: Sequence[Layer], shape: Sequence[int]) -> Iterator[tuple[Shape, bool]]:
    """The shape of the input, and after each layer; with whether it is a vector.

    Raises:
        Unsupported: a layer does not take what the one before makes.
    """
    if len(shape) not in (1, 3) or not all(0 < n <= MOST_VALUES for n in shape):
        raise Unsupported(f"an input of shape {tuple(shape)}: (C, H, W) or (F,) would do")
    flat = len(shape) == 1
    here: Shape = (shape[0], 1, 1) if flat else (shape[0], shape[1], shape[2])
    yield here, flat
    for layer in layers:
        here, flat = layer.output(here, flat)
        if math.prod(here) > MOST_VALUES:
            raise layer.fault(f"makes {math.prod(here)} numbers; {MOST_VALUES} at most")
        yield here, flat


def to_rows(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Plain values for JSON."""
    return [{"kind": layer.kind, **asdict(layer)} for layer in layers]


def from_rows(rows: object) -> tuple[Layer, ...]:
    """The inverse of `to_rows`, of JSON that somebody else wrote.

    Raises:
        HomomorphicError: a value is missing, of another type, out of its bounds or too much.
    """
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_LAYERS:
        raise HomomorphicError(f"a plan has 1 to {MOST_LAYERS} layers")
    return tuple(_from_row(row) for row in rows)


def _from_row(row: object) -> Layer:
    kind = _KINDS.get(str(row.get("kind"))) if isinstance(row, dict) else None
    if kind is None or not isinstance(row, dict):
        raise HomomorphicError("a plan's layer is of no kind that is known here")
    known = {field.name for field in fields(kind)}
    if set(row) != known | {"kind"}:
        raise HomomorphicError(f"a plan's {kind.kind} layer has other fields than {sorted(known)}")
    return kind(**{name: _value(name, row[name]) for name in known})


def _value(name: str, value: Any) -> Any:
    """One field, checked; lists become tuples."""
    match name:
        case "name":
            sound = isinstance(value, str) and len(value) <= MOST_NAME and value.isprintable()
        case "bias" | "affine":
            sound = isinstance(value, bool)
        case "channels" | "outputs":
            sound = _whole(value, 1, MOST_VALUES)
        case "kernel" | "stride" | "padding" | "dilation":
            least = 0 if name == "padding" else 1
            sound = isinstance(value, list) and len(value) == 2
            sound = sound and all(_whole(one, least, MOST_SIDE) for one in value)
        case "eps":
            sound = _number(value) and 0 <= value <= 1
        case _:  # fixed
            sound = value is None or (
                isinstance(value, list) and len(value) == 3 and all(map(_number, value))
            )
    if not sound:
        raise HomomorphicError(f"a plan's layer has {name} = {str(value)[:40]!r}")
    return tuple(value) if isinstance(value, list) else value


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
