"""A program as a jax function of its parameters and inputs, which SPU compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from g2d.protect.multiparty.program import Layer, Program

Tensor = Any


def function(program: Program) -> Callable[..., Tensor]:
    """The network as a function of all parameters, in their order, and x (n, *shape), last."""

    def network(*given: Tensor) -> Tensor:
        *parameters, x = given
        rest = iter(parameters)
        for layer in program.layers:
            x = _APPLY[layer["kind"]](layer, x, rest)
        return x

    return network


def _conv(layer: Layer, x: Tensor, rest: Any) -> Tensor:
    import jax

    made = jax.lax.conv_general_dilated(
        x, next(rest), layer["stride"], [(p, p) for p in layer["padding"]],
        rhs_dilation=layer["dilation"], feature_group_count=layer["groups"],
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )  # fmt: skip
    return made + next(rest)[None, :, None, None] if layer["bias"] else made


def _linear(layer: Layer, x: Tensor, rest: Any) -> Tensor:
    made = x @ next(rest).T
    return made + next(rest) if layer["bias"] else made


def _scale(layer: Layer, x: Tensor, rest: Any) -> Tensor:
    around = (1, layer["channels"]) + (1,) * (x.ndim - 2)
    return x * next(rest).reshape(around) + next(rest).reshape(around)


def _relu(layer: Layer, x: Tensor, rest: Any) -> Tensor:
    import jax.numpy as jnp

    return jnp.maximum(x, 0)


def _flatten(layer: Layer, x: Tensor, rest: Any) -> Tensor:
    return x.reshape(x.shape[0], -1)


def _maxpool(layer: Layer, x: Tensor, rest: Any) -> Tensor:
    import jax.numpy as jnp

    # A tree of maxima over what lies at each place of a window: ceil(log2(places)) rounds of
    # comparisons, all windows at once. Where windows hang over, the border repeats what is least.
    (height, width), (down, right) = layer["kernel"], layer["stride"]
    above, before = layer["padding"]
    if above or before:
        x = jnp.pad(x, ((0, 0), (0, 0), (above, above), (before, before)), constant_values=-_BORDER)
    rows, columns = (x.shape[2] - height) // down + 1, (x.shape[3] - width) // right + 1
    places = [
        x[:, :, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
        for i in range(height)
        for j in range(width)
    ]
    while len(places) > 1:
        half = len(places) // 2
        larger = jnp.maximum(jnp.stack(places[:half]), jnp.stack(places[half : 2 * half]))
        places = [*larger, *places[2 * half :]]
    return places[0]


def _avgpool(layer: Layer, x: Tensor, rest: Any) -> Tensor:
    import jax

    (height, width), padding = layer["kernel"], layer["padding"]
    around = [(0, 0), (0, 0), *((p, p) for p in padding)]
    total = jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (1, 1, height, width), (1, 1, *layer["stride"]), around
    )
    return total * (1.0 / (height * width))


def _pair(layer: Layer, x: Tensor, rest: Any) -> Tensor:
    import jax.numpy as jnp

    z = x.reshape(-1)
    return jnp.stack([jnp.zeros_like(z), z], 1)


_BORDER = float(1 << 20)
_APPLY: dict[str, Callable[[Layer, Tensor, Any], Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "scale": _scale,
    "relu": _relu,
    "flatten": _flatten,
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "pair": _pair,
}
