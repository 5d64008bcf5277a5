"""Low-rank adapters: of a large network a few thousand parameters move, and all else stays.

    W' = W + (alpha / rank) * up @ down        (LoRA, Hu et al. 2022, arXiv 2106.09685, section 4.1)

W, under its own name, is frozen; `up` begins at zero, so that an adapted network gives the logits
of the network as it was. A population of such a task trains, and its generator makes, the adapters
and what is named beside them. What is in scope of a vault is read off the model (`weights.layout`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from g2d.errors import TaskError

DOWN, UP = "adapter_down", "adapter_up"
"""The last parts of the names of an adapter's two tensors, (rank, inputs) and (outputs, rank)."""


@dataclass(frozen=True)
class Adapted:
    """A factory of networks of which adapters alone train, and what `train` names.

    Attributes:
        factory: builds the network; its own weights may be pretrained ones.
        layers: names or patterns (`*.query`) of `nn.Linear`, `nn.Conv1d` and `nn.Conv2d` modules.
        rank: of the change of each layer's weight; at most the smaller of its sides counts.
        alpha: what the change is scaled by, over the rank; 0: as the rank, so that it is not.
        train: names or patterns of parameters that train as they are (`classifier.*`, `*norm*`).

    Raises:
        TaskError: when it is called: a pattern matches nothing, or a layer of another kind or
            with tied weights.
    """

    factory: Callable[[], nn.Module]
    layers: Sequence[str]
    rank: int = 4
    alpha: float = 0.0
    train: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _patterns(self.layers, "layers"))
        object.__setattr__(self, "train", _patterns(self.train, "train"))
        if not isinstance(self.rank, int) or self.rank < 1:
            raise TaskError(f"the rank of adapters is {self.rank!r}, expected 1 or more")
        if not self.layers and not self.train:
            raise TaskError("adapters name no layers, and no parameters to train: name some")

    def __call__(self) -> nn.Module:
        """Build the network, frozen but for its adapters and what `train` names."""
        model = self.factory().requires_grad_(False)
        named = dict(model.named_modules())
        fitting = [name for name, module in named.items() if type(module) in _KINDS]
        owners = _owners(model)
        for name in _matched(self.layers, list(named), "layer", fitting):
            _adapt(named[name], name, self.rank, self.alpha or float(self.rank), owners)
        parameters = dict(model.named_parameters())
        own = [name for name in parameters if not is_adapter(name)]
        for name in _matched(self.train, own, "parameter", own):
            parameters[name].requires_grad_(True)
        return model

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The plain network's state, adapters added to the weights: for use without G2D."""
        scale = (self.alpha or float(self.rank)) / self.rank
        plain = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
        for name in state:
            if name.rpartition(".")[2] == UP:
                layer = name.rpartition(".")[0]
                weight = f"{layer}.weight" if layer else "weight"
                down = state[name.removesuffix(UP) + DOWN]
                plain[weight] = _changed(plain[weight], state[name], down, scale)
        return plain


def is_adapter(name: str) -> bool:
    """Whether an entry of a state dict is an adapter's."""
    return name.rpartition(".")[2] in (DOWN, UP)


class _Adapted:
    """A layer whose `weight`, whoever asks for it, has the adapter in it.

    Not `forward` alone: `nn.TransformerEncoderLayer` in evaluation, and users' own `F.linear`, take
    the weights of layers that they never call. The frozen weight stays a parameter of its name.
    """

    adapter_scale: float

    @property
    def weight(self) -> Tensor:
        """The weight as it is computed with."""
        assert isinstance(self, nn.Module)
        down, up, frozen = (self._parameters[name] for name in (DOWN, UP, "weight"))
        assert down is not None
        assert up is not None
        assert frozen is not None
        return _changed(frozen, up, down, self.adapter_scale)


class _Linear(_Adapted, nn.Linear):  # type: ignore[override]
    pass


class _Conv1d(_Adapted, nn.Conv1d):  # type: ignore[override]
    pass


class _Conv2d(_Adapted, nn.Conv2d):  # type: ignore[override]
    pass


_KINDS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _Linear, nn.Conv1d: _Conv1d, nn.Conv2d: _Conv2d,
}  # fmt: skip


def _changed(weight: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    return weight + scale * (up @ down).view(weight.shape)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter, by its identity: several where modules share it."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(name, recurse=False):
            owners.setdefault(id(parameter), []).append(own)
    return owners


def _adapt(
    layer: nn.Module, name: str, rank: int, alpha: float, owners: Mapping[int, list[str]]
) -> None:
    """Make a layer one with an adapter, under its own name, its weights where they are."""
    if type(layer) not in _KINDS:
        kinds = ", ".join(f"nn.{kind.__name__}" for kind in _KINDS)
        raise TaskError(
            f"adapters: layer {name!r} is of type {type(layer).__name__}, expected one of {kinds};"
            " name others, or let its parameters train as they are (train=…)"
        )
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if others := [one for one in owners[id(weight)] if one.rpartition(".")[0] != name]:
        raise TaskError(
            f"adapters: layer {name!r} shares its weight with {others[0]!r} (tied), and an adapter"
            " would change one of the two alone; name other layers"
        )
    outputs, inputs = len(weight), weight[0].numel()
    least = min(rank, outputs, inputs)
    down = torch.empty(least, inputs, dtype=weight.dtype)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    layer.register_parameter(DOWN, nn.Parameter(down))
    layer.register_parameter(UP, nn.Parameter(torch.zeros(outputs, least, dtype=weight.dtype)))
    layer.__class__ = _KINDS[type(layer)]
    layer.adapter_scale = alpha / rank  # type: ignore[assignment]


def _patterns(given: Sequence[str] | str, what: str) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(one, str) for one in given):
        raise TaskError(f"adapters: {what} is {given!r}, expected a list of names or patterns")
    return tuple(given)


def _matched(
    patterns: Sequence[str], names: Sequence[str], what: str, fitting: Sequence[str]
) -> list[str]:
    """Names that patterns take, each once, in their order; of those of a pattern that fit, if any.

    Raises:
        TaskError: a pattern takes none; says what there is.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if name and fnmatch(name, pattern)]
        if not found:
            more = ", …" if len(fitting) > 8 else ""
            raise TaskError(
                f"adapters: pattern {pattern!r} matches no {what}. The model has:"
                f" {', '.join(fitting[:8])}{more}"
            )
        # A layer that is named exactly, or all of a pattern's that do not fit, are told of.
        chosen.update([name for name in found if name in fitting] or found)
    return [name for name in names if name in chosen]
