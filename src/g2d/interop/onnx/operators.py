"""What becomes of each ONNX operator in torch; weights become parameters, other numbers constants.

An operator that is not here, or has an attribute that is not, is not covered; its name is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from g2d.interop.keras.network import SameAvgPool2d, SameConv1d, SameConv2d, SameMaxPool2d
from g2d.interop.network import Concatenate, Permute, View
from g2d.interop.onnx.export import require
from g2d.interop.onnx.folding import folded
from g2d.interop.onnx.functions import Axes, Function, Pads, Reduce
from g2d.interop.onnx.reading import Reading

Translator = Callable[[Reading, Any, dict[str, Any]], bool]
"""Puts a node into the plan; False: something of it is not covered."""


def translate(reading: Reading, node: Any) -> bool:
    """Put a node into the plan; False: it is not covered."""
    try:
        return _put(reading, node)
    except Exception:  # torch's or onnx's, of what a file says that makes no sense
        return False


def _put(reading: Reading, node: Any) -> bool:
    onnx, _ = require()
    given = [name for name in node.input if name]
    if all(name in reading.constants for name in given):
        made = folded(node, reading.constants, reading.opsets, reading.room)
        if made is not None:
            reading.room -= sum(value.numel() for value in made.values())
            reading.constants |= made
        return made is not None
    if node.op_type == "Shape":
        return _shape(reading, node)
    known = COVERED.get(node.op_type)
    if known is None or node.domain not in ("", "ai.onnx"):
        return False
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return known(reading, node, attributes)


def _shape(reading: Reading, node: Any) -> bool:
    """The shape of a value, -1 in the place of the number of examples: what Reshape is given."""
    shape = reading.shapes.get(node.input[0], ())
    if not shape or None in shape[1:] or node.attribute:
        return False
    reading.constants[node.output[0]] = torch.tensor([-1, *[n or 0 for n in shape[1:]]])
    return True


def _constant(reading: Reading, node: Any, place: int) -> Tensor | None:
    """A node's input that is a constant; None: it is left out, or is none."""
    name = node.input[place] if len(node.input) > place else ""
    return reading.constants.get(name)


def _pads(a: dict[str, Any], rank: int) -> tuple[int, ...] | str | None:
    """Equal pads on both sides of each axis, "same" as TensorFlow's, or None: something else."""
    auto = a.get("auto_pad", b"NOTSET")
    if auto == b"SAME_UPPER":
        return "same"
    pads = tuple(a.get("pads", (0,) * 2 * rank))
    if auto not in (b"NOTSET", b"VALID") or pads[:rank] != pads[rank:]:
        return None
    return pads[:rank]


def _conv(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    weight, bias = _constant(reading, node, 1), _constant(reading, node, 2)
    if weight is None or weight.dim() not in (3, 4):
        return False
    rank, given = weight.dim() - 2, [node.input[0]]
    pads = _pads(a, rank)
    if pads is None:
        return False
    groups = a.get("group", 1)
    kinds: dict[tuple[bool, int], Any] = {
        (False, 1): nn.Conv1d, (False, 2): nn.Conv2d, (True, 1): SameConv1d, (True, 2): SameConv2d,
    }  # fmt: skip
    one = (1,) * rank
    module = kinds[pads == "same", rank](
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]),
        tuple(a.get("strides", one)), 0 if pads == "same" else pads,
        tuple(a.get("dilations", one)), groups, bias is not None,
    )  # fmt: skip
    reading.add(node, module, given, weight=weight, bias=bias)
    return True


def _gemm(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    weight, bias = _constant(reading, node, 1), _constant(reading, node, 2)
    plain = a.get("alpha", 1.0) == 1 and a.get("beta", 1.0) == 1 and not a.get("transA", 0)
    if weight is None or not plain or (bias is None and len(node.input) > 2):
        return False
    weight = weight if a.get("transB", 0) else weight.T
    bias = bias if bias is None else bias.expand(len(weight)).clone()
    linear = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    reading.add(node, linear, [node.input[0]], weight=weight, bias=bias)
    return True


def _matmul(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    weight = _constant(reading, node, 1)
    if weight is None:
        return _function(reading, node, "MatMul")
    if weight.dim() != 2 or node.input[0] in reading.constants:
        return False
    linear = nn.Linear(weight.shape[0], weight.shape[1], bias=False)
    reading.add(node, linear, [node.input[0]], weight=weight.T)
    return True


def _batch_norm(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    weight, bias, mean, var = (_constant(reading, node, place) for place in range(1, 5))
    rank = reading.rank(node.input[0])
    if weight is None or rank not in (2, 3, 4):
        return False
    kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
    norm = kind(len(weight), a.get("epsilon", 1e-5), 1 - a.get("momentum", 0.9))
    own = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    reading.add(node, norm, [node.input[0]], **own)
    return True


def _layer_norm(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    weight, bias = _constant(reading, node, 1), _constant(reading, node, 2)
    rank = reading.rank(node.input[0])
    if weight is None or weight.dim() != 1 or a.get("axis", -1) not in (-1, rank - 1):
        return False
    norm = nn.LayerNorm(len(weight), a.get("epsilon", 1e-5), bias=bias is not None)
    reading.add(node, norm, [node.input[0]], weight=weight, bias=bias)
    return True


def _pool(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    kernel = tuple(a["kernel_shape"])
    rank = len(kernel)
    pads, stride = _pads(a, rank), tuple(a.get("strides", (1,) * rank))
    known = rank == 2 and set(a.get("dilations", (1,))) == {1} and len(node.output) == 1
    if not known or pads is None or (pads == "same" and a.get("ceil_mode", 0)):
        return False
    largest, ceil = node.op_type == "MaxPool", bool(a.get("ceil_mode", 0))
    if pads == "same":
        module: nn.Module = (SameMaxPool2d if largest else SameAvgPool2d)(kernel, stride)
    elif largest:
        module = nn.MaxPool2d(kernel, stride, pads, ceil_mode=ceil)  # type: ignore[arg-type]
    else:
        counts = bool(a.get("count_include_pad", 0))
        module = nn.AvgPool2d(kernel, stride, pads, ceil, counts)  # type: ignore[arg-type]
    reading.add(node, module, [node.input[0]])
    return True


def _global_pool(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    rank = reading.rank(node.input[0])
    kinds: dict[tuple[str, int], Any] = {
        ("GlobalAveragePool", 3): nn.AdaptiveAvgPool1d,
        ("GlobalAveragePool", 4): nn.AdaptiveAvgPool2d,
        ("GlobalMaxPool", 3): nn.AdaptiveMaxPool1d,
        ("GlobalMaxPool", 4): nn.AdaptiveMaxPool2d,
    }
    kind = kinds.get((node.op_type, rank))
    if kind is None:
        return False
    reading.add(node, kind(1), [node.input[0]])
    return True


def _flatten(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    if a.get("axis", 1) != 1:
        return False
    reading.add(node, nn.Flatten(), [node.input[0]])
    return True


def _reshape(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    """The first axis stays the examples: a file that was made for one example says 1 there."""
    target, shape = _constant(reading, node, 1), reading.shapes.get(node.input[0], ())
    if target is None or (a.get("allowzero", 0) and 0 in target.tolist()):
        return False
    first, *rest = target.tolist()
    own = shape[0] if shape else None
    if first not in (0, -1, own) or not rest or (first == -1 and -1 in rest):
        return False
    sizes = tuple(shape[i + 1] if n == 0 else n for i, n in enumerate(rest))
    if None in sizes:
        return False
    whole = len(sizes) == 1
    reading.add(node, nn.Flatten() if whole else View(sizes), [node.input[0]])  # type: ignore[arg-type]
    return True


def _transpose(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    axes = tuple(a.get("perm", ()))
    if axes[:1] != (0,):
        return False
    reading.add(node, Permute(*axes), [node.input[0]])
    return True


def _concat(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    if a["axis"] == 0 or any(name in reading.constants for name in node.input):
        return False
    reading.add(node, Concatenate(a["axis"]), list(node.input))
    return True


def _pass(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    reading.steps[node.output[0]] = reading.steps[node.input[0]]
    return True


def _cast(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    return a["to"] == 1 and _pass(reading, node, a)  # 1: float32, as everything is here


def _dropout(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    rate = _constant(reading, node, 1)
    p = a.get("ratio", 0.5) if rate is None else float(rate)
    reading.add(node, nn.Dropout(p), [node.input[0]])
    return True


def _activation(make: Callable[[dict[str, Any]], nn.Module | None]) -> Translator:
    def put(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
        module = make(a)
        if module is not None:
            reading.add(node, module, [node.input[0]])
        return module is not None

    return put


def _softmax(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    rank = reading.rank(node.input[0])
    if a.get("axis", -1) not in (-1, rank - 1):
        return False
    kind = nn.Softmax if node.op_type == "Softmax" else nn.LogSoftmax
    reading.add(node, kind(-1), [node.input[0]])
    return True


def _function(reading: Reading, node: Any, kind: str) -> bool:
    given = [name for name in node.input if name]
    known = [name for name in given if name in reading.constants]
    if len(known) > 1 or len(given) > 2 or (known and not reading.constants[known[0]].numel()):
        return False
    values = [name for name in given if name not in known]
    constant = reading.constants[known[0]].float() if known else None
    module = Function(kind, constant, last=not known or given[-1] == known[0])
    reading.add(node, module, values, constant=constant)
    return True


def _elementwise(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    return _bias(reading, node) or _function(reading, node, node.op_type)


def _bias(reading: Reading, node: Any) -> bool:
    """A constant that is added to what a matrix alone gave is the bias of that layer."""
    known = [name for name in node.input if name in reading.constants]
    values = [name for name in node.input if name not in known]
    if node.op_type != "Add" or len(known) != 1 or len(values) != 1 or not reading.plan:
        return False
    (name, linear), bias = reading.modules[-1], reading.constants[known[0]]
    newest = reading.steps[values[0]] == len(reading.plan) and reading.uses[values[0]] == 1
    if not newest or not isinstance(linear, nn.Linear) or "bias" in dict(linear.named_parameters()):
        return False
    if tuple(bias.shape) != (linear.out_features,):
        return False
    reading.modules[-1] = (name, nn.Linear(linear.in_features, linear.out_features))
    reading.weights[f"{name}.bias"] = bias
    reading.steps[node.output[0]] = len(reading.plan)
    return True


def _reduce(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    given = _constant(reading, node, 1)
    axes = tuple(given.tolist()) if given is not None else tuple(a.get("axes", ()))
    rank = reading.rank(node.input[0])
    if not axes or not rank or any(axis % rank == 0 for axis in axes):
        return False
    module = Reduce(node.op_type, axes, bool(a.get("keepdims", 1)))
    reading.add(node, module, [node.input[0]])
    return True


def _axes(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    given = _constant(reading, node, 1)
    axes = tuple(given.tolist()) if given is not None else tuple(a.get("axes", ()))
    if not axes or min(axes) < 1:
        return False
    reading.add(node, Axes(node.op_type, axes), [node.input[0]])
    return True


def _clip(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    low, high = _constant(reading, node, 1), _constant(reading, node, 2)
    least = float(low) if low is not None else float(a.get("min", -torch.inf))
    most = float(high) if high is not None else float(a.get("max", torch.inf))
    module = nn.ReLU6() if (least, most) == (0, 6) else nn.Hardtanh(least, most)
    reading.add(node, module, [node.input[0]])
    return True


def _pad(reading: Reading, node: Any, a: dict[str, Any]) -> bool:
    pads, value = _constant(reading, node, 1), _constant(reading, node, 2)
    if pads is None or a.get("mode", b"constant") != b"constant" or len(node.input) > 3:
        return False
    if value is not None and float(value) != 0:
        return False
    pairs = list(zip(*pads.reshape(2, -1).tolist(), strict=True))
    if any(pairs[0]):
        return False
    module = Pads(tuple(n for pair in reversed(pairs[1:]) for n in pair))
    reading.add(node, module, [node.input[0]])
    return True


def _hard_sigmoid(a: dict[str, Any]) -> nn.Module | None:
    usual = abs(a.get("alpha", 0.2) - 1 / 6) < 1e-6 and a.get("beta", 0.5) == 0.5
    return nn.Hardsigmoid() if usual else None


def _gelu(a: dict[str, Any]) -> nn.Module:
    return nn.GELU(a.get("approximate", b"none").decode())


COVERED: dict[str, Translator] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm, "MaxPool": _pool, "AveragePool": _pool,
    "GlobalAveragePool": _global_pool, "GlobalMaxPool": _global_pool, "Flatten": _flatten,
    "Reshape": _reshape, "Transpose": _transpose, "Concat": _concat, "Identity": _pass,
    "Cast": _cast, "Dropout": _dropout, "Softmax": _softmax, "LogSoftmax": _softmax,
    "Squeeze": _axes, "Unsqueeze": _axes, "Clip": _clip, "Pad": _pad,
    "Relu": _activation(lambda a: nn.ReLU()),
    "LeakyRelu": _activation(lambda a: nn.LeakyReLU(a.get("alpha", 0.01))),
    "Elu": _activation(lambda a: nn.ELU(a.get("alpha", 1.0))),
    "Selu": _activation(lambda a: nn.SELU()),
    "Sigmoid": _activation(lambda a: nn.Sigmoid()),
    "Tanh": _activation(lambda a: nn.Tanh()),
    "Softplus": _activation(lambda a: nn.Softplus(threshold=1e9)),
    "Softsign": _activation(lambda a: nn.Softsign()),
    "HardSwish": _activation(lambda a: nn.Hardswish()),
    "Mish": _activation(lambda a: nn.Mish()),
    "HardSigmoid": _activation(_hard_sigmoid),
    "Gelu": _activation(_gelu),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _reduce),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Erf", "Sqrt", "Exp", "Log", "Neg",
         "Abs", "Reciprocal"), _elementwise,
    ),
}  # fmt: skip
