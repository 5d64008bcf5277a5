"""What becomes of Keras' convolutions and pools in torch: channels first, padded as TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

from torch import nn

from g2d.interop.keras import network
from g2d.interop.keras.graph import Reading, Untranslated, Value

Sizes = tuple[int | None, ...]


def _check(layer: Any) -> None:
    if layer.data_format != "channels_last":
        raise Untranslated(f"layer {layer.name!r} has its channels first")


def _pads(
    sizes: Sizes, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...] | None:
    """What "same" pads on both sides of each axis; None: more after, or the size is not known."""
    found = []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        if size is None:
            return None
        before, after = network.same(size, k, s, d)
        if before != after:
            return None
        found.append(before)
    return tuple(found)


def _reach(size: int | None, kernel: int, stride: int, dilation: int, padding: str) -> int | None:
    """How many places a window has."""
    if size is None:
        return None
    if padding == "same":
        return -(-size // stride)
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def _sizes(value: Value, layer: Any, kernel: tuple[int, ...]) -> Sizes:
    dilation = getattr(layer, "dilation_rate", (1,) * len(kernel))
    given = zip(value.shape[:-1], kernel, layer.strides, dilation, strict=True)
    return tuple(_reach(n, k, s, d, layer.padding) for n, k, s, d in given)


def _module(value: Value, layer: Any, width: int, groups: int, bias: bool) -> nn.Module:
    """A convolution of torch, with torch's own padding where that is TensorFlow's."""
    rank = len(layer.kernel_size)
    if rank not in (1, 2) or layer.padding not in ("same", "valid"):
        raise Untranslated(f"layer {layer.name!r} has {rank} axes, or padding {layer.padding!r}")
    kernel, stride, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    usual: Any = nn.Conv1d if rank == 1 else nn.Conv2d
    pads: tuple[int, ...] | None = (0,) * rank
    if layer.padding == "same":
        pads = _pads(value.shape[:-1], kernel, stride, dilation)
        if pads is None:
            usual = network.SameConv1d if rank == 1 else network.SameConv2d
    module: nn.Module = usual(
        value.width, width, tuple(kernel), tuple(stride), pads or 0, tuple(dilation), groups, bias
    )
    return module


def _convolution(reading: Reading, layer: Any, given: list[Value]) -> Value:
    from g2d.interop.keras.layers import activate

    _check(layer)
    value = reading.first(given[0])
    bias = layer.bias is not None
    module = _module(value, layer, layer.filters, layer.groups, bias)
    shape = (*_sizes(value, layer, layer.kernel_size), layer.filters)
    result = reading.add("conv", module, [value], replace(value, shape=shape))
    rank = len(layer.kernel_size)
    reading.hold(layer.kernel, "weight", axes=(rank + 1, rank, *range(rank)))
    if bias:
        reading.hold(layer.bias, "bias")
    _freeze(layer, module)
    return activate(reading, layer, layer.activation, result)


def _depthwise(
    reading: Reading, layer: Any, value: Value, kernel: Any, bias: bool
) -> tuple[Value, nn.Module]:
    rank = len(layer.kernel_size)
    width = value.width * layer.depth_multiplier
    module = _module(value, layer, width, value.width, bias)
    shape = (*_sizes(value, layer, layer.kernel_size), width)
    result = reading.add("depthwise", module, [value], replace(value, shape=shape))
    own = (width, 1, *layer.kernel_size)
    reading.hold(kernel, "weight", axes=(rank, rank + 1, *range(rank)), shape=own)
    return result, module


def _depthwise_convolution(reading: Reading, layer: Any, given: list[Value]) -> Value:
    from g2d.interop.keras.layers import activate

    _check(layer)
    bias = layer.bias is not None
    result, module = _depthwise(reading, layer, reading.first(given[0]), layer.kernel, bias)
    if bias:
        reading.hold(layer.bias, "bias")
    _freeze(layer, module)
    return activate(reading, layer, layer.activation, result)


def _separable(reading: Reading, layer: Any, given: list[Value]) -> Value:
    from g2d.interop.keras.layers import activate

    _check(layer)
    value = reading.first(given[0])
    value, deep = _depthwise(reading, layer, value, layer.depthwise_kernel, False)
    bias, rank = layer.bias is not None, len(layer.kernel_size)
    kind: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if rank == 1 else nn.Conv2d
    point = kind(value.width, layer.filters, 1, bias=bias)
    result = replace(value, shape=(*value.shape[:-1], layer.filters))
    result = reading.add("pointwise", point, [value], result)
    reading.hold(layer.pointwise_kernel, "weight", axes=(rank + 1, rank, *range(rank)))
    if bias:
        reading.hold(layer.bias, "bias")
    _freeze(layer, deep)
    _freeze(layer, point)
    return activate(reading, layer, layer.activation, result)


def _freeze(layer: Any, module: nn.Module) -> None:
    if not layer.trainable:
        module.requires_grad_(False)


def _pool(reading: Reading, layer: Any, given: list[Value]) -> Value:
    _check(layer)
    value = reading.first(given[0])
    kernel, stride = tuple(layer.pool_size), tuple(layer.strides)
    pads: Any = (0, 0)
    if layer.padding == "same":
        pads = _pads(value.shape[:-1], kernel, stride, (1, 1))
    largest = type(layer).__name__ == "MaxPooling2D"
    module: nn.Module
    if pads is None or any(2 * pad > k for pad, k in zip(pads, kernel, strict=True)):
        kind = network.SameMaxPool2d if largest else network.SameAvgPool2d
        module = kind(kernel, stride)
    elif largest:
        module = nn.MaxPool2d(kernel, stride, pads)
    else:
        module = nn.AvgPool2d(kernel, stride, pads, count_include_pad=False)
    shape = (*_sizes(value, layer, kernel), value.width)
    return reading.add("pool", module, [value], replace(value, shape=shape))


def _global_pool(reading: Reading, layer: Any, given: list[Value]) -> Value:
    _check(layer)
    value = reading.first(given[0])
    rank = len(value.shape) - 1
    kinds: dict[tuple[bool, int], Callable[[int], nn.Module]] = {
        (True, 1): nn.AdaptiveMaxPool1d, (True, 2): nn.AdaptiveMaxPool2d,
        (False, 1): nn.AdaptiveAvgPool1d, (False, 2): nn.AdaptiveAvgPool2d,
    }  # fmt: skip
    if rank not in (1, 2):
        raise Untranslated(f"layer {layer.name!r} pools {rank} axes")
    module = kinds["Max" in type(layer).__name__, rank](1)
    pooled = replace(value, shape=(*(1,) * rank, value.width))
    pooled = reading.add("global_pool", module, [value], pooled)
    if layer.keepdims:
        return pooled
    result = replace(pooled, shape=(value.width,), first=False)
    return reading.add("flatten", nn.Flatten(), [pooled], result)


def _zero_padding(reading: Reading, layer: Any, given: list[Value]) -> Value:
    _check(layer)
    value = reading.first(given[0])
    pads = [tuple(pair) for pair in layer.padding]
    module = nn.ZeroPad2d(tuple(one for pair in reversed(pads) for one in pair))
    shape = tuple(
        None if size is None else size + sum(pair)
        for size, pair in zip(value.shape[:-1], pads, strict=True)
    )
    return reading.add("padding", module, [value], replace(value, shape=(*shape, value.width)))


def _up(reading: Reading, layer: Any, given: list[Value]) -> Value:
    _check(layer)
    if layer.interpolation != "nearest":
        raise Untranslated(f"layer {layer.name!r} interpolates by {layer.interpolation}")
    value = reading.first(given[0])
    by = tuple(layer.size)
    shape = tuple(None if n is None else n * k for n, k in zip(value.shape[:-1], by, strict=True))
    module = nn.Upsample(scale_factor=tuple(float(k) for k in by))
    assert prod(by) >= 1
    return reading.add("upsample", module, [value], replace(value, shape=(*shape, value.width)))


LAYERS: dict[str, Callable[[Reading, Any, list[Value]], Value]] = {
    "Conv1D": _convolution,
    "Conv2D": _convolution,
    "DepthwiseConv2D": _depthwise_convolution,
    "SeparableConv2D": _separable,
    "MaxPooling2D": _pool,
    "AveragePooling2D": _pool,
    "GlobalAveragePooling1D": _global_pool,
    "GlobalAveragePooling2D": _global_pool,
    "GlobalMaxPooling1D": _global_pool,
    "GlobalMaxPooling2D": _global_pool,
    "ZeroPadding2D": _zero_padding,
    "UpSampling2D": _up,
}
