"""What a graph computes of constants alone, as shapes are: computed at once, within a bound.

A file may name any operator and any size: those here are known, and their results are counted
before they are made. A few bytes would otherwise fill the memory (`ConstantOfShape`, or doubling
again and again).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOM = 1 << 24
"""Numbers that may be computed beyond four times those of the file."""

_Sizes = Callable[[Sequence[Tensor], Mapping[str, Any]], int]


def folded(
    node: Any, given: Mapping[str, Tensor], opsets: Any, room: int
) -> dict[str, Tensor] | None:
    """What a node gives of constants; None: its kind is not known, or it gives too much.

    Args:
        given: values by the names that the node takes. opsets: the model's. room: numbers at most.

    Raises:
        Exception: of the reference's own kinds, for a node that is wrong in itself.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    size = _SIZES.get(node.op_type)
    if size is None or node.domain not in ("", "ai.onnx"):
        return None
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    values = [given[name] for name in node.input if name]
    if size(values, attributes) > room:
        return None
    # A function, since a node alone would be read as of the newest opset.
    names = list(dict.fromkeys(name for name in node.input if name))
    made = onnx.helper.make_function("own", "Fold", names, list(node.output), [node], opsets)
    taken = {name: given[name].numpy() for name in names}
    found = ReferenceEvaluator(made).run(None, taken, {})
    return {
        name: torch.from_numpy(np.array(value))
        for name, value in zip(node.output, found, strict=True)
    }


def _alike(values: Sequence[Tensor], _: Mapping[str, Any]) -> int:
    """As large as what is given, spread over each other."""
    return prod(np.broadcast_shapes(*(tuple(value.shape) for value in values)))


def _first(values: Sequence[Tensor], _: Mapping[str, Any]) -> int:
    """Not larger than what comes first."""
    return values[0].numel()


def _together(values: Sequence[Tensor], _: Mapping[str, Any]) -> int:
    return sum(value.numel() for value in values)


def _gathered(values: Sequence[Tensor], attributes: Mapping[str, Any]) -> int:
    data, places = values
    return places.numel() * data.numel() // max(1, data.shape[attributes.get("axis", 0)])


def _filled(values: Sequence[Tensor], _: Mapping[str, Any]) -> int:
    return prod(int(n) for n in values[0].tolist())


def _spread(values: Sequence[Tensor], _: Mapping[str, Any]) -> int:
    return prod(np.broadcast_shapes(tuple(values[0].shape), tuple(values[1].tolist())))


def _written(_: Sequence[Tensor], attributes: Mapping[str, Any]) -> int:
    """As large as the file has it: numbers, and no sparse tensor or text."""
    (name,) = attributes
    if name == "value":
        return prod(attributes[name].dims)
    if name not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise ValueError(name)
    return int(np.size(attributes[name]))


_SIZES: dict[str, _Sizes] = {
    "Constant": _written,
    "ConstantOfShape": _filled,
    "Expand": _spread,
    "Gather": _gathered,
    "Concat": _together,
    **dict.fromkeys(
        ("Shape", "Size", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose",
         "Cast", "CastLike", "Identity", "DequantizeLinear", "Neg", "Abs", "Sqrt", "Exp", "Log",
         "Reciprocal", "Floor", "Ceil", "Not", "ReduceProd", "ReduceSum", "ReduceMean"), _first,
    ),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Max", "Min", "Equal", "Greater", "Less",
         "Where"), _alike,
    ),
}  # fmt: skip
