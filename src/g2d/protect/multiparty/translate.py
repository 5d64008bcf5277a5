"""From a torch network to a program and its parameters: layers that run one after another.

Batch norms in evaluation mode are folded into the layer before them where that gives the same, and
stay a scale and a shift elsewhere: parties divide by nothing that is secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2d.core.types import Array
from g2d.protect.multiparty.errors import MultipartyError, UnsupportedError
from g2d.protect.multiparty.program import Program

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_TAKEN = (
    "Conv2d, Linear, ReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, Flatten, BatchNorm and Dropout"
)
_INPUTS, _AGREES = 4, 1e-4
_LARGEST = float(1 << 20)  # 64 times below what the ring holds: other inputs give other values
Read = tuple[dict[str, Any], list[Tensor]]
"""A layer as a program has it, and its parameters."""


@dataclass(frozen=True)
class Translated:
    """A program and its parameters (float64), in the program's order."""

    program: Program
    parameters: list[Array] = field(repr=False)


def translate(
    model: nn.Module,
    shape: tuple[int, ...],
    least: Sequence[float] = (),
    most: Sequence[float] = (),
) -> Translated:
    """Translate a network, in evaluation mode, as it stands.

    It is read module by module, in the order in which they are registered, and compared with the
    network on random inputs: one that runs them in another order, or does more, is refused.

    Args:
        shape: of one input. least, most: range of its values, as `Program` has them.

    Raises:
        UnsupportedError: a layer cannot be computed by parties; the text says which, and what can.
    """
    was = model.training
    model.eval()
    try:
        layers = list(_layers(model, shape))
        parts = _folded(layers)
        source = torch.Generator().manual_seed(0)
        low, high = ((torch.tensor(list(side), dtype=torch.float32) if side else torch.tensor(end))
                     for side, end in ((least, 0.0), (most, 1.0)))  # fmt: skip
        x = low + (high - low) * torch.rand(_INPUTS, *shape, generator=source)
        with torch.no_grad():
            logits = model(x.to(_dtype(model))).double()
        if logits.dim() != 2 or len(logits) != _INPUTS:
            raise UnsupportedError(f"the network gives {tuple(logits.shape)}, not (n, classes)")
        described = [part for part, _ in parts]
        parameters = [one for _, owned in parts for one in owned]
        if logits.shape[1] == 2 and _apply(described, parameters, x).shape[1:] != (2,):
            described.append({"kind": "pair"})
    finally:
        model.train(was)
    program = Program(
        tuple(shape), int(logits.shape[1]), tuple(described), tuple(least), tuple(most)
    )
    _check_same(_apply(described, parameters, x), logits)
    _check_size(described, parameters, x)
    return Translated(program, [one.numpy() for one in parameters])


def plain(program: Program, parameters: Sequence[Array], x: Array) -> Array:
    """The program on plain numbers, in float64: what parties' answers are compared with."""
    given = [torch.from_numpy(np.asarray(one, np.float64)) for one in parameters]
    return np.asarray(_apply(program.layers, given, torch.from_numpy(np.asarray(x))).numpy())


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _check_same(found: Tensor, logits: Tensor) -> None:
    if found.shape != logits.shape or not torch.allclose(found, logits, _AGREES, _AGREES):
        raise UnsupportedError(
            "the network is no chain: its layers, one after another, give other logits than it does"
            " (a shortcut, a layer that is used twice, or code between layers). Parties compute"
            " nn.Sequential, or modules whose children run in order"
        )


def _check_size(layers: Sequence[Any], parameters: Sequence[Tensor], x: Tensor) -> None:
    """Refuse what leaves the ring: a value beyond 2^26 wraps around before it is truncated."""
    rest = iter(parameters)
    for place, layer in enumerate(layers):
        x = _apply([layer], rest, x)
        if (largest := float(x.abs().max())) > _LARGEST:
            raise UnsupportedError(
                f"layer {place} ({layer['kind']}) gives values of {largest:.3g}, and parties hold"
                f" at most {_LARGEST:.3g} with safety: scale inputs, or train with weight decay"
            )


# --- reading --------------------------------------------------------------------------------------


def _layers(model: nn.Module, shape: tuple[int, ...]) -> Iterator[Read]:
    """Every layer with its parameters; inputs go through, for the shapes in between."""
    x = torch.zeros(1, *shape, dtype=_dtype(model))
    for name, module in model.named_modules():
        if next(module.children(), None) is not None or isinstance(module, _NOTHING):
            continue
        label = f"layer {name or '(the whole)'} ({type(module).__name__})"
        read = next((make for kind, make in _READ.items() if isinstance(module, kind)), None)
        if read is None:
            raise UnsupportedError(f"{label} cannot be computed by parties: {_advice(module)}")
        try:
            yield read(module, x)
            with torch.no_grad():
                x = module(x)
        except UnsupportedError as error:
            raise UnsupportedError(f"{label}: {error}") from error
        except RuntimeError as error:
            raise UnsupportedError(
                f"{label} does not fit what comes before it: the network is no chain of its layers"
            ) from error


def _advice(module: nn.Module) -> str:
    if type(module).__name__ in ("Tanh", "Sigmoid", "GELU", "SiLU", "ELU", "LeakyReLU", "Softmax"):
        return "train the population with ReLU instead (logits need no softmax)"
    return f"they compute {_TAKEN}"


def _two(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, tuple | list) else [int(value)] * 2


def _conv(module: nn.Conv2d, x: Tensor) -> Read:
    if module.padding_mode != "zeros":
        raise UnsupportedError(f"padding_mode is {module.padding_mode!r}, expected 'zeros'")
    padding = module.padding
    if isinstance(padding, str):
        if padding == "same":
            raise UnsupportedError("padding is 'same', expected numbers")
        padding = (0, 0)
    layer = {
        "kind": "conv", "weight": list(module.weight.shape), "bias": module.bias is not None,
        "stride": _two(module.stride), "padding": _two(padding),
        "dilation": _two(module.dilation), "groups": module.groups,
    }  # fmt: skip
    return layer, _own(module.weight, module.bias)


def _linear(module: nn.Linear, x: Tensor) -> Read:
    if x.dim() != 2:
        raise UnsupportedError(f"it gets {tuple(x.shape[1:])} of each input: put a Flatten before")
    layer = {"kind": "linear", "weight": list(module.weight.shape), "bias": module.bias is not None}
    return layer, _own(module.weight, module.bias)


def _norm(module: Any, x: Tensor) -> Read:
    if module.running_mean is None:
        raise UnsupportedError("it keeps no running statistics: each batch would be its own")
    mean, variance = module.running_mean.double(), module.running_var.double()
    scale = (variance + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach().double()
    shift = -mean * scale
    if module.bias is not None:
        shift = shift + module.bias.detach().double()
    return {"kind": "scale", "channels": len(mean)}, [scale, shift]


def _maxpool(module: nn.MaxPool2d, x: Tensor) -> Read:
    if module.ceil_mode or _two(module.dilation) != [1, 1]:
        raise UnsupportedError("ceil_mode and dilation are not computed by parties")
    return _pool("maxpool", module), []


def _avgpool(module: nn.AvgPool2d, x: Tensor) -> Read:
    counted = module.count_include_pad or _two(module.padding) == [0, 0]
    if module.ceil_mode or module.divisor_override or not counted:
        raise UnsupportedError(
            "ceil_mode, divisor_override and count_include_pad=False are not computed by parties"
        )
    return _pool("avgpool", module), []


def _pool(kind: str, module: Any) -> dict[str, Any]:
    return {
        "kind": kind, "kernel": _two(module.kernel_size), "stride": _two(module.stride),
        "padding": _two(module.padding),
    }  # fmt: skip


def _adaptive(module: nn.AdaptiveAvgPool2d, x: Tensor) -> Read:
    size = module.output_size
    asked = list(size) if isinstance(size, tuple | list) else [size, size]
    wanted = [side if a is None else int(a) for a, side in zip(asked, x.shape[2:], strict=True)]
    if any(side % a for a, side in zip(wanted, x.shape[2:], strict=True)):
        raise UnsupportedError(f"{tuple(x.shape[2:])} is no multiple of {tuple(wanted)}")
    kernel = [side // a for a, side in zip(wanted, x.shape[2:], strict=True)]
    return {"kind": "avgpool", "kernel": kernel, "stride": kernel, "padding": [0, 0]}, []


def _flatten(module: nn.Flatten, x: Tensor) -> Read:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise UnsupportedError("it flattens a part: expected nn.Flatten()")
    return {"kind": "flatten"}, []


def _relu(module: nn.ReLU, x: Tensor) -> Read:
    return {"kind": "relu"}, []


def _own(*tensors: Tensor | None) -> list[Tensor]:
    return [one.detach().double() for one in tensors if one is not None]


_READ: dict[Any, Callable[..., Read]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    _NORMS: _norm,
    nn.ReLU: _relu,
    nn.MaxPool2d: _maxpool,
    nn.AvgPool2d: _avgpool,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.Flatten: _flatten,
}


def _folded(
    layers: list[Read],
) -> list[Read]:
    """Scales that follow a convolution or a dense layer become part of it; pools precede ReLUs."""
    made: list[Read] = []
    for layer, owned in layers:
        if layer["kind"] == "scale" and made and "weight" in made[-1][0]:
            before, (weight, *bias) = made.pop()
            scale, shift = owned
            wide = scale.reshape(-1, *[1] * (weight.dim() - 1))
            moved = shift + scale * bias[0] if bias else shift
            made.append(({**before, "bias": True}, [weight * wide, moved]))
        elif layer["kind"] == "maxpool" and made and made[-1][0]["kind"] == "relu":
            # The largest of what is not negative, either way round: fewer values are compared.
            made.insert(len(made) - 1, (layer, owned))
        else:
            made.append((layer, owned))
    return made


# --- computing ------------------------------------------------------------------------------------


def _apply(layers: Sequence[Any], parameters: Iterable[Tensor], x: Tensor) -> Tensor:
    """The layers on plain numbers, float64."""
    rest, x = iter(parameters), x.double()
    for layer in layers:
        kind = layer["kind"]
        if kind == "conv":
            weight, bias = next(rest), next(rest) if layer["bias"] else None
            x = F.conv2d(
                x, weight, bias, tuple(layer["stride"]), tuple(layer["padding"]),
                tuple(layer["dilation"]), layer["groups"],
            )  # fmt: skip
        elif kind == "linear":
            weight, bias = next(rest), next(rest) if layer["bias"] else None
            x = F.linear(x, weight, bias)
        elif kind == "scale":
            around = (1, -1) + (1,) * (x.dim() - 2)
            x = x * next(rest).reshape(around) + next(rest).reshape(around)
        elif kind in ("maxpool", "avgpool"):
            pool = F.max_pool2d if kind == "maxpool" else F.avg_pool2d
            x = pool(x, tuple(layer["kernel"]), tuple(layer["stride"]), tuple(layer["padding"]))
        elif kind == "pair":
            x = torch.stack([torch.zeros_like(x.reshape(-1)), x.reshape(-1)], 1)
        elif kind == "relu":
            x = x.relu()
        elif kind == "flatten":
            x = x.flatten(1)
        else:
            raise MultipartyError(f"layer of kind {kind!r}")
    return x
