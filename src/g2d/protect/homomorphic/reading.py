"""A network, a torch module, read as a chain of layers; nothing else of homomorphic inference asks
what modules there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from g2d.core.polynomial import Polynomial
from g2d.protect.homomorphic.errors import Unsupported
from g2d.protect.homomorphic.layers import (
    Activation,
    Conv,
    Dense,
    Flatten,
    Layer,
    Norm,
    Pool,
)

__all__ = ["pre_activations", "read_layers"]

_ADVICE = {
    nn.Flatten: "keeps dimensions: Flatten() of all but the batch would do",
    nn.ReLU: "compares: put g2d.tasks.polynomials.Square() in its place, as task mnist-he does",
    nn.MaxPool2d: "compares: put AvgPool2d in its place",
}


def read_layers(network: nn.Module, shape: Sequence[int]) -> tuple[Layer, ...]:
    """The layers of a chain, in order.

    Args:
        network: a `Sequential`, or a module whose children run in the order of registration.
        shape: of one input, (C, H, W) or (F,).

    Raises:
        Unsupported: a layer has no place under encryption, or the network is no chain.
    """
    leaves = list(_leaves(network, ""))
    if not leaves:
        raise Unsupported("the network has no layers")
    layers = [layer for name, module in leaves if (layer := _layer(name, module)) is not None]
    _check_chain(network, [module for _, module in leaves], shape)
    return tuple(layers)


def pre_activations(network: nn.Module, images: Tensor) -> dict[str, float]:
    """The largest magnitude that reaches each polynomial layer, by the layer's name.

    A polynomial explodes outside of what it was trained on, and under encryption values beyond
    `Plan.bound` lose their precision: `ranges_of` compares these numbers with it, for each layer.
    The gate of pre-activations (`defence.gates.polynomials`) is relative to what the base's see.

    Args:
        images: (n, *shape); the network is called as it is, in the mode that it is in.
    """
    found: dict[str, float] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            top = inputs[0].detach().abs().max().nan_to_num(torch.inf, torch.inf)
            found[name] = max(found.get(name, 0.0), float(top))

        return modules[name].register_forward_pre_hook(note)

    modules = {name: one for name, one in network.named_modules() if isinstance(one, Polynomial)}
    handles = [watch(name) for name in modules]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    children = list(module.named_children())
    if not children:
        yield name, module
    for child, inner in children:
        yield from _leaves(inner, f"{name}.{child}" if name else child)


def _layer(name: str, module: nn.Module) -> Layer | None:
    """The record of one module; None for what does nothing in eval mode."""
    found: Layer | None
    match module:
        case nn.Conv2d():
            found = _conv(name, module)
        case nn.Linear():
            found = Dense(name, module.out_features, module.bias is not None)
        case nn.AvgPool2d():
            found = _pool(name, module)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            found = _norm(name, module)
        case Polynomial():
            fixed = module.fixed()
            found = Activation(name, fixed and (float(fixed[0]), float(fixed[1]), float(fixed[2])))
        case nn.Flatten() if (module.start_dim, module.end_dim) == (1, -1):
            found = Flatten(name)
        case nn.Identity() | nn.Dropout() | nn.Dropout2d():
            found = None
        case _:
            raise _unknown(name, module)
    return found


def _unknown(name: str, module: nn.Module) -> Unsupported:
    advice = next((said for kind, said in _ADVICE.items() if isinstance(module, kind)), None)
    known = "Conv2d, Linear, AvgPool2d, BatchNorm, Flatten, Square and Quadratic would do"
    return _refuse(name, module, advice or f"is neither linear nor a polynomial; {known}")


def _conv(name: str, module: nn.Conv2d) -> Conv:
    if module.groups != 1:
        raise _refuse(name, module, f"has groups={module.groups}: groups=1 would do")
    if module.padding_mode != "zeros":
        raise _refuse(name, module, f"pads by {module.padding_mode!r}: 'zeros' would do")
    kernel, dilation = _pair(module.kernel_size), _pair(module.dilation)
    padding = module.padding
    if padding == "same":
        around = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(one % 2 for one in around):
            raise _refuse(name, module, "pads one side more than the other: odd kernels would do")
        padding = (around[0] // 2, around[1] // 2)
    padding = (0, 0) if isinstance(padding, str) else _pair(padding)
    stride, bias = _pair(module.stride), module.bias is not None
    return Conv(name, module.out_channels, kernel, stride, padding, dilation, bias)


def _pool(name: str, module: nn.AvgPool2d) -> Pool:
    plain = _pair(module.padding) == (0, 0) and not module.ceil_mode
    if not plain or module.divisor_override:
        raise _refuse(name, module, "pads, or divides by another number: AvgPool2d(2) would do")
    return Pool(name, _pair(module.kernel_size), _pair(module.stride))


def _norm(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> Norm:
    if not module.track_running_stats:
        raise _refuse(name, module, "keeps no running statistics: let it track them")
    return Norm(name, float(module.eps), module.affine)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _refuse(name: str, module: nn.Module, why: str) -> Unsupported:
    return Unsupported(f"layer {name!r} ({type(module).__name__}) {why}")


def _check_chain(network: nn.Module, modules: Sequence[nn.Module], shape: Sequence[int]) -> None:
    """Refuse a network whose forward is not its leaves in order: try it on two inputs."""
    modes = {module: module.training for module in network.modules()}
    first = next(network.parameters(), torch.empty(0))
    noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        network.eval()
        with torch.no_grad():
            here = said = noise.to(first)
            for module in modules:
                here = module(here)
            said = network(said)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Unsupported(
            f"the network does not take inputs of {tuple(shape)}: {reason}"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if here.shape != said.shape or not torch.allclose(here, said, 1e-3, 1e-4, equal_nan=True):
        raise Unsupported("the network is no chain: its layers in order give other answers than it")
