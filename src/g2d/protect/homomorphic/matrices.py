"""What linear layers do to one input, as a sparse matrix and a vector; layers composed into steps.

A network becomes steps, each one matrix, with a square between any two. A quadratic needs no step
of its own: with s = sqrt|a|, a·x² + b·x + c is sign(a)·(s·x + sign(a)·b / 2s)² + c - b²/4a, so its
coefficients go into the matrices before and behind the square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from g2d.protect.homomorphic.errors import HomomorphicError
from g2d.protect.homomorphic.layers import (
    Activation,
    Conv,
    Dense,
    Flatten,
    Layer,
    Norm,
    Pool,
    Shape,
    shapes,
)

__all__ = ["Affine", "State", "Step", "affines", "pattern", "steps_of"]

State = Mapping[str, Tensor]

MOST_ENTRIES = 3_000_000
"""Non-zero numbers of one step's matrix: a plan that asks for more is refused before it is made."""

_MOST_WORK = 100_000_000
"""Products of numbers when matrices of layers in a row are multiplied: a second of one core."""

MOST_TAPS = 1024
"""Places of one window."""

_MOST_SHIFT = 1e4
"""b²/4|a|: the square and the summand that cancels it may not dwarf the rest."""


@dataclass(frozen=True)
class Step:
    """Linear layers in a row, and the square behind them (None behind the last).

    Attributes:
        shape: of what comes in. output: of what goes out. pooled: side of the windows that are
            averaged before anything else, and are summed by rotations instead of by the matrix.
    """

    layers: tuple[Layer, ...]
    activation: Activation | None
    shape: Shape
    output: Shape
    flat: bool
    pooled: int = 1

    @property
    def name(self) -> str:
        """What messages call it: its first layer."""
        return self.layers[0].name

    @property
    def inner(self) -> Shape:
        """The shape that the matrix takes: after the windows are summed."""
        side = self.pooled
        return self.shape[0], self.shape[1] // side, self.shape[2] // side

    @property
    def grid(self) -> int:
        """How the step before had best interleave what it makes: pooling's or convolution's step.

        1, 2 or 4: a square power of two is what rotations can sum, or skip.
        """
        first = self.layers[0]
        if isinstance(first, Pool) and first.kernel != first.stride:
            return 1
        if not isinstance(first, Pool | Conv) or len(set(first.stride)) != 1:
            return 1
        return first.stride[0] if first.stride[0] in (2, 4) else 1


@dataclass(frozen=True)
class Affine:
    """y = matrix @ x + bias for one step, with the constants of the polynomials around it."""

    matrix: Any
    bias: np.ndarray


def steps_of(layers: Sequence[Layer], shape: Sequence[int]) -> tuple[Step, ...]:
    """Cut a chain at its activations.

    Raises:
        Unsupported: it begins or ends with an activation, has two in a row, or is too large.
    """
    known = list(shapes(layers, shape))
    found: list[Step] = []
    start = 0
    for i, layer in enumerate(layers):
        if layer.linear and i + 1 < len(layers):
            continue
        if not layer.linear and (i == start or i + 1 == len(layers)):
            raise layer.fault("has no linear layer on both of its sides: put one there")
        stop = i + 1 if layer.linear else i
        activation = layer if isinstance(layer, Activation) else None
        (here, flat), (there, _) = known[start], known[stop]
        inside = tuple(layers[start:stop])
        if all(isinstance(one, Flatten) for one in inside):
            raise layer.fault("has no linear layer on both of its sides: put one there")
        found.append(Step(inside, activation, here, there, flat))
        start = i + 1
    return tuple(found)


def summed(step: Step) -> Step:
    """The same step with its leading average pooling left to rotations; itself if it has none."""
    first = step.layers[0]
    if not isinstance(first, Pool) or step.grid == 1 or first.kernel[0] != first.kernel[1]:
        return step
    return Step(step.layers, step.activation, step.shape, step.output, step.flat, first.kernel[0])


def pattern(step: Step) -> Any:
    """Where the step's matrix may be other than zero, whatever the weights: CSR of ones.

    Raises:
        Unsupported: it has too many such places, or none.
    """
    matrix = _compose(step, _Ones()).matrix
    if not matrix.nnz:
        raise step.layers[0].fault("sees nothing but padding")
    matrix.data[:] = 1.0
    return matrix


def affines(steps: Sequence[Step], state: State) -> list[Affine]:
    """The matrices and vectors of all steps for one state dict, polynomials folded in.

    Raises:
        HomomorphicError: an array is missing, foreign, of another shape or not finite, or a
            polynomial's leading coefficient is zero or next to it.
    """
    reader = _Reader(state)
    found: list[Affine] = []
    sign, constant = 1.0, 0.0
    for step in steps:
        raw = _compose(step, reader)
        mean = raw.matrix * (1.0 / step.pooled**2)  # of sums that rotations make
        bias = raw.bias + constant * np.asarray(raw.matrix.sum(axis=1)).ravel()
        matrix, scale, shift = mean * sign, 1.0, 0.0
        if step.activation is not None:
            a, b, c = reader.polynomial(step.activation)
            scale = math.sqrt(abs(a))
            sign = math.copysign(1.0, a)
            shift, constant = sign * b / (2 * scale), c - b * b / (4 * a)
        found.append(Affine(sparse.csr_matrix(matrix * scale), bias * scale + shift))
    reader.finish()
    return found


class _Ones:
    """Stands in for weights where only the pattern is asked for."""

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.ones(shape)

    def skip(self, name: str) -> None:
        pass


class _Reader:
    """Takes arrays out of a state dict and remembers which."""

    def __init__(self, state: State) -> None:
        self._state, self._read = state, set[str]()

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One array as float64."""
        self._read.add(name)
        given = self._state.get(name)
        if given is None:
            raise HomomorphicError(f"the weights have no {name!r}: they are of another network")
        if tuple(given.shape) != shape:
            raise HomomorphicError(
                f"{name} has the shape {tuple(given.shape)}, and the plan wants {shape}"
            )
        array = given.detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(array).all():
            raise HomomorphicError(f"{name} is not finite: no such generation is served")
        return array

    def polynomial(self, layer: Activation) -> tuple[float, float, float]:
        """Its coefficients, fixed or learned."""
        given = layer.fixed or tuple(float(self.array(f"{layer.name}.{one}", ())) for one in "abc")
        a, b, c = given
        if a == 0 or b * b > 4 * abs(a) * _MOST_SHIFT:
            raise HomomorphicError(
                f"the polynomial {layer.name!r} has a = {a:g} beside b = {b:g}: too near a line"
            )
        return a, b, c

    def skip(self, name: str) -> None:
        """An array that inference does not need."""
        self._read.add(name)

    def finish(self) -> None:
        """Refuse arrays that belong to no layer."""
        if strange := sorted(set(self._state) - self._read):
            raise HomomorphicError(f"the weights have {strange[0]!r}: they are of another network")


def _compose(step: Step, reader: _Ones | _Reader) -> Affine:
    """All layers of a step but the pooling that rotations do."""
    layers, shape, flat = step.layers, step.inner, step.flat
    if step.pooled > 1:
        layers = layers[1:]
    matrix: Any = None
    bias = np.zeros(math.prod(shape))
    for layer in layers:
        after, now_flat = layer.output(shape, flat)
        one = _matrix(layer, shape, after, reader)
        shape, flat = after, now_flat
        if one is None:
            continue
        if matrix is not None:
            _bound_product(layer, one.matrix, matrix)
        matrix = one.matrix if matrix is None else one.matrix @ matrix
        bias = one.matrix @ bias + one.bias
        _bound(layer, matrix.nnz)
    if matrix is None:
        matrix = sparse.identity(math.prod(shape), format="csr")
    matrix.sort_indices()
    return Affine(matrix, bias)


def _bound(layer: Layer, entries: int) -> None:
    if isinstance(layer, Conv | Pool) and math.prod(layer.kernel) > MOST_TAPS:
        raise layer.fault(f"has a window of {layer.kernel}: {MOST_TAPS} places at most")
    if entries > MOST_ENTRIES:
        raise layer.fault(
            f"has {entries} products, {MOST_ENTRIES} at most: fewer channels or a stride would do"
        )


def _bound_product(layer: Layer, one: Any, other: Any) -> None:
    """Refuse a product of two matrices, from the number of their entries, before it is made."""
    work = int(one.getnnz(axis=0).astype(np.int64) @ other.getnnz(axis=1).astype(np.int64))
    room = min(work, one.shape[0] * other.shape[1])  # what is allocated for the result, at most
    if work > _MOST_WORK or room > 8 * MOST_ENTRIES:
        raise layer.fault(
            f"needs {work} products, {_MOST_WORK} at most, to be joined with the linear layers"
            f" before it, and makes up to {room} numbers, {8 * MOST_ENTRIES} at most: an activation"
            " between them, or one layer in their place, would do"
        )


def _matrix(layer: Layer, before: Shape, after: Shape, reader: _Ones | _Reader) -> Affine | None:
    """One layer; None for what changes nothing."""
    match layer:
        case Conv():
            return _conv(layer, before, after, reader)
        case Dense():
            shape = (layer.outputs, before[0])
            _bound(layer, math.prod(shape))
            weight = reader.array(f"{layer.name}.weight", shape)
            rows, columns = np.indices(shape).reshape(2, -1)
            matrix = sparse.csr_matrix((weight.ravel(), (rows, columns)), shape)
            bias = (
                reader.array(f"{layer.name}.bias", shape[:1]) if layer.bias else np.zeros(shape[0])
            )
            return Affine(matrix, bias)
        case Pool():
            channels = range(before[0])
            _bound(layer, math.prod(after) * math.prod(layer.kernel))
            taps = np.ones((1, 1, *layer.kernel)) / math.prod(layer.kernel)
            parts = [_taps(layer, taps, before, after, (c, c)) for c in channels]
            return Affine(_sum(parts, before, after), np.zeros(math.prod(after)))
        case Norm():
            return _norm(layer, before, reader)
    return None


def _norm(layer: Norm, shape: Shape, reader: _Ones | _Reader) -> Affine:
    def of(name: str) -> np.ndarray:
        return reader.array(f"{layer.name}.{name}", (shape[0],))

    scale, shift = (of("weight"), of("bias")) if layer.affine else (1.0, 0.0)
    reader.skip(f"{layer.name}.num_batches_tracked")
    spread = of("running_var") + layer.eps
    if (spread <= 0).any():
        raise HomomorphicError(f"{layer.name}.running_var is not above zero")
    factor = scale / np.sqrt(spread)
    area = shape[1] * shape[2]
    summand = shift - of("running_mean") * factor
    return Affine(sparse.diags(np.repeat(factor, area)).tocsr(), np.repeat(summand, area))


def _conv(layer: Conv, before: Shape, after: Shape, reader: _Ones | _Reader) -> Affine:
    shape = (layer.channels, before[0], *layer.kernel)
    _bound(layer, math.prod(shape) * after[1] * after[2])
    weight = reader.array(f"{layer.name}.weight", shape)
    matrix = _sum([_taps(layer, weight, before, after, (0, 0))], before, after)
    bias = np.zeros(layer.channels)
    if layer.bias:
        bias = reader.array(f"{layer.name}.bias", (layer.channels,))
    return Affine(matrix, np.repeat(bias, after[1] * after[2]))


def _taps(
    layer: Conv | Pool, weight: np.ndarray, before: Shape, after: Shape, first: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, columns and values of each tap; `first` are the channels, out and in, to begin at."""
    pads = layer.padding if isinstance(layer, Conv) else (0, 0)
    spread = layer.dilation if isinstance(layer, Conv) else (1, 1)
    y, x = np.indices(after[1:]).reshape(2, -1)
    made, taken = (np.arange(n) + f for n, f in zip(weight.shape[:2], first, strict=True))
    found = []
    for dy, dx in np.ndindex(*layer.kernel):
        iy = y * layer.stride[0] + dy * spread[0] - pads[0]
        ix = x * layer.stride[1] + dx * spread[1] - pads[1]
        inside = (iy >= 0) & (iy < before[1]) & (ix >= 0) & (ix < before[2])
        out = (y * after[2] + x)[inside]
        source = (iy * before[2] + ix)[inside]
        shape = (len(made), len(taken), len(out))
        rows = made[:, None, None] * (after[1] * after[2]) + out
        columns = taken[None, :, None] * (before[1] * before[2]) + source
        values = weight[:, :, dy, dx][:, :, None]
        found.append(tuple(np.broadcast_to(one, shape).ravel() for one in (rows, columns, values)))
    return found  # type: ignore[return-value]


def _sum(parts: list[Any], before: Shape, after: Shape) -> Any:
    """All taps as one CSR matrix."""
    rows, columns, values = (
        np.concatenate([tap[i] for part in parts for tap in part]) for i in range(3)
    )
    return sparse.csr_matrix((values, (rows, columns)), (math.prod(after), math.prod(before)))
