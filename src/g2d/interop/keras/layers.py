"""What becomes of each kind of Keras layer in torch, and where its variables go.

A layer that is not here, or has an option that is not, stops the translation (`Untranslated`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from g2d.interop.keras import convolutions
from g2d.interop.keras.graph import Reading, Untranslated, Value
from g2d.interop.keras.network import KerasBatchNorm1d, KerasBatchNorm2d
from g2d.interop.network import Concatenate, Merge, Rescale, View

Translator = Callable[[Reading, Any, list[Value]], Value]


def translate(reading: Reading, layer: Any, given: list[Value]) -> Value:
    """Put a layer, or an operation of `keras.ops`, into the plan.

    Raises:
        Untranslated: its kind, or one of its options, is not known.
    """
    kind, home = type(layer).__name__, type(layer).__module__
    if home.startswith("keras.src.ops.") and kind in _OPERATIONS:
        return _operation(reading, layer, given)
    found = _LAYERS.get(kind) or convolutions.LAYERS.get(kind)
    if found is None or not known(type(layer)):
        what = "" if home.startswith("keras.src.") else ", a class of yours,"
        raise Untranslated(f"layer {layer.name!r} ({kind}){what} has no translation")
    policy = layer.dtype_policy
    if policy.compute_dtype != "float32" or policy.variable_dtype != "float32":
        raise Untranslated(f"layer {layer.name!r} computes in {policy.compute_dtype}")
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise Untranslated(f"layer {layer.name!r} is quantised, or has a low-rank adapter")
    return found(reading, layer, given)


def known(kind: type) -> bool:
    """Whether a class of layers is Keras' own, and has a translation."""
    name = kind.__name__
    own = kind.__module__.startswith("keras.src.layers.")
    return own and (name in _LAYERS or name in convolutions.LAYERS)


def activate(reading: Reading, layer: Any, function: Any, value: Value) -> Value:
    """Put an activation behind a value; Keras' own alone are known."""
    import keras

    own = keras.activations
    if function is own.linear:
        return value
    if function is own.softmax:
        value = reading.plain(value)
        return reading.add("softmax", nn.Softmax(-1), [value], value)
    known: dict[Any, nn.Module] = {
        own.relu: nn.ReLU(), own.relu6: nn.ReLU6(), own.leaky_relu: nn.LeakyReLU(0.2),
        own.elu: nn.ELU(), own.selu: nn.SELU(), own.gelu: nn.GELU(), own.tanh: nn.Tanh(),
        own.sigmoid: nn.Sigmoid(), own.silu: nn.SiLU(), own.softplus: nn.Softplus(threshold=1e9),
        own.softsign: nn.Softsign(), own.hard_sigmoid: nn.Hardsigmoid(),
        own.hard_silu: nn.Hardswish(), own.mish: nn.Mish(), own.hard_tanh: nn.Hardtanh(),
    }  # fmt: skip
    if function not in known:
        name = getattr(function, "__name__", function)
        raise Untranslated(f"layer {layer.name!r} has the activation {name}")
    return reading.add(function.__name__, known[function], [value], value)


def _dense(reading: Reading, layer: Any, given: list[Value]) -> Value:
    (value,) = given
    order = value.order
    value = reading.plain(value) if value.first else value
    bias = layer.bias is not None
    linear = nn.Linear(value.width, layer.units, bias=bias)
    result = replace(value, shape=(*value.shape[:-1], layer.units), order=None)
    result = reading.add("dense", linear, [value], result)
    reading.hold(layer.kernel, "weight", order=order, axes=(1, 0))
    if bias:
        reading.hold(layer.bias, "bias")
    _freeze(layer, linear)
    return activate(reading, layer, layer.activation, result)


def _batch_norm(reading: Reading, layer: Any, given: list[Value]) -> Value:
    (value,) = given
    rank = len(value.shape)
    if layer.axis not in (-1, rank) or layer.renorm:
        raise Untranslated(f"layer {layer.name!r} normalises axis {layer.axis}, not the last")
    if rank > 3:
        raise Untranslated(f"layer {layer.name!r} normalises {rank} axes")
    value = reading.first(value) if rank > 1 else value
    kind = KerasBatchNorm2d if rank == 3 else KerasBatchNorm1d
    norm = kind(value.width, layer.epsilon, 1 - layer.momentum)
    norm.fixed = not layer.trainable
    result = reading.add("batch_norm", norm, [value], value)
    _affine(reading, layer, norm, value.order)
    reading.hold(layer.moving_mean, "running_mean", order=value.order)
    reading.hold(layer.moving_variance, "running_var", order=value.order)
    return result


def _affine(reading: Reading, layer: Any, norm: Any, order: Tensor | None = None) -> None:
    """A norm's scale and shift; one that Keras leaves out stays 1, or 0."""
    for variable, name in ((layer.gamma, "weight"), (layer.beta, "bias")):
        if variable is None:
            getattr(norm, name).requires_grad_(False)
        else:
            reading.hold(variable, name, order=order)
    if not layer.trainable:
        norm.requires_grad_(False)


def _layer_norm(reading: Reading, layer: Any, given: list[Value]) -> Value:
    value = reading.plain(given[0])
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if axes not in ([-1], [len(value.shape)]) or getattr(layer, "rms_scaling", False):
        raise Untranslated(f"layer {layer.name!r} normalises other axes than the last")
    norm = nn.LayerNorm(value.width, layer.epsilon)
    result = reading.add("layer_norm", norm, [value], value)
    _affine(reading, layer, norm)
    return result


def _embedding(reading: Reading, layer: Any, given: list[Value]) -> Value:
    value = reading.plain(given[0])
    if layer.mask_zero:
        raise Untranslated(f"layer {layer.name!r} masks zeros")
    embedding = nn.Embedding(layer.input_dim, layer.output_dim)
    result = replace(value, shape=(*value.shape, layer.output_dim))
    result = reading.add("embedding", embedding, [value], result)
    reading.hold(layer._embeddings, "weight")
    _freeze(layer, embedding)
    return result


def _freeze(layer: Any, module: nn.Module) -> None:
    if not layer.trainable:
        module.requires_grad_(False)


def _flatten(reading: Reading, layer: Any, given: list[Value]) -> Value:
    (value,) = given
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise Untranslated(f"layer {layer.name!r} has its channels first")
    sizes = [n for n in value.shape if n is not None]
    if len(sizes) != len(value.shape):
        raise Untranslated(f"layer {layer.name!r} flattens images of a size that is not known")
    order = value.order
    if value.first and prod(sizes[:-1]) > 1:
        axes = (len(sizes) - 1, *range(len(sizes) - 1))
        order = torch.arange(prod(sizes)).reshape(sizes).permute(axes).flatten()
    result = replace(value, shape=(prod(sizes),), first=False, order=order)
    return reading.add("flatten", nn.Flatten(), [value], result)


def _reshape(reading: Reading, layer: Any, given: list[Value]) -> Value:
    value = reading.plain(given[0])
    shape = tuple(layer.target_shape)
    if -1 in shape:
        sizes = [n for n in value.shape if n is not None]
        if len(sizes) != len(value.shape):
            raise Untranslated(f"layer {layer.name!r} reshapes what has no size yet")
        rest = -prod(shape)
        shape = tuple(prod(sizes) // rest if n == -1 else n for n in shape)
    return reading.add("reshape", View(shape), [value], replace(value, shape=shape))


def _dropout(reading: Reading, layer: Any, given: list[Value]) -> Value:
    if getattr(layer, "noise_shape", None) is not None:
        raise Untranslated(f"layer {layer.name!r} has a shape of noise")
    return reading.add("dropout", nn.Dropout(layer.rate), given, given[0])


def _spatial_dropout(reading: Reading, layer: Any, given: list[Value]) -> Value:
    value = reading.first(given[0])
    kind = nn.Dropout1d if len(value.shape) == 2 else nn.Dropout2d
    return reading.add("dropout", kind(layer.rate), [value], value)


def _activation(reading: Reading, layer: Any, given: list[Value]) -> Value:
    return activate(reading, layer, layer.activation, given[0])


def _relu(reading: Reading, layer: Any, given: list[Value]) -> Value:
    if layer.threshold or layer.max_value not in (None, 6) or (
        layer.max_value and layer.negative_slope
    ):  # fmt: skip
        raise Untranslated(f"layer {layer.name!r} is a ReLU with a threshold, or a largest value")
    rectified: nn.Module = nn.ReLU6() if layer.max_value else nn.ReLU()
    if layer.negative_slope:
        rectified = nn.LeakyReLU(float(layer.negative_slope))
    return reading.add("relu", rectified, given, given[0])


def _leaky(reading: Reading, layer: Any, given: list[Value]) -> Value:
    rectified = nn.LeakyReLU(float(layer.negative_slope))
    return reading.add("leaky_relu", rectified, given, given[0])


def _softmax(reading: Reading, layer: Any, given: list[Value]) -> Value:
    value = reading.plain(given[0])
    if layer.axis not in (-1, len(value.shape)):
        raise Untranslated(f"layer {layer.name!r} is a softmax over axis {layer.axis}")
    return reading.add("softmax", nn.Softmax(-1), [value], value)


def _rescaling(reading: Reading, layer: Any, given: list[Value]) -> Value:
    if not all(isinstance(one, int | float) for one in (layer.scale, layer.offset)):
        raise Untranslated(f"layer {layer.name!r} rescales by several numbers")
    module = Rescale(float(layer.scale), float(layer.offset))
    return reading.add("rescaling", module, given, given[0])


def _identity(reading: Reading, layer: Any, given: list[Value]) -> Value:
    return given[0]


def _merge(reading: Reading, layer: Any, given: list[Value]) -> Value:
    kind = type(layer).__name__.lower()
    return _merged(reading, layer, given, kind)


def _merged(reading: Reading, layer: Any, given: list[Value], kind: str) -> Value:
    first = given[0]
    if len(given) < 2 or any(len(value.shape) != len(first.shape) for value in given):
        raise Untranslated(f"{layer.name!r} merges values of several ranks")
    if not all(value.same_layout(first) for value in given[1:]):
        given = [reading.plain(value) for value in given]
    shape = _broadcast(layer, given)
    return reading.add(kind, Merge(kind), given, replace(given[0], shape=shape))


def _broadcast(layer: Any, given: list[Value]) -> tuple[int | None, ...]:
    shape = []
    for sizes in zip(*(value.shape for value in given), strict=True):
        several = {size for size in sizes if size != 1}
        if len(several) > 1:
            raise Untranslated(f"{layer.name!r} merges values of several shapes")
        shape.append(several.pop() if several else 1)
    return tuple(shape)


def _concatenate(reading: Reading, layer: Any, given: list[Value]) -> Value:
    rank = len(given[0].shape)
    last = layer.axis in (-1, rank)
    first = last and all(value.first for value in given)
    given = given if first else [reading.plain(value) for value in given]
    axis = layer.axis if layer.axis < 0 else layer.axis - 1  # of one example
    shape = list(given[0].shape)
    shape[axis] = sum(value.shape[axis] or 0 for value in given)
    module = Concatenate(1 if first else (axis if axis < 0 else axis + 1))
    return reading.add("concatenate", module, given, replace(given[0], shape=tuple(shape)))


_MERGES = ("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average")
_LAYERS: dict[str, Translator] = {
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Embedding": _embedding,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Dropout": _dropout,
    "SpatialDropout1D": _spatial_dropout,
    "SpatialDropout2D": _spatial_dropout,
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky,
    "Softmax": _softmax,
    "Rescaling": _rescaling,
    "Identity": _identity,
    "Concatenate": _concatenate,
    **dict.fromkeys(_MERGES, _merge),
}
_OPERATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "Relu": nn.ReLU,
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Maximum", "Minimum")),
}


def _operation(reading: Reading, operation: Any, given: list[Value]) -> Value:
    kind = type(operation).__name__
    make = _OPERATIONS[kind]
    if make is None:
        return _merged(reading, operation, given, kind.lower())
    return reading.add(kind.lower(), make(), given, given[0])
