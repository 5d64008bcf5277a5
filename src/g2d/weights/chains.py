"""Hidden units as they are read off a plain feed-forward model, and what may be done to them.

What is done with them, and whether what was read is right, is in `symmetry`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from g2d.core.polynomial import Polynomial
from g2d.core.types import State

_POINTWISE = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)
_MEANS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool1d)
_LARGEST = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.MaxPool1d)
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU)
_ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Hardtanh, nn.ReLU6)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
_CURVED = (*_LARGEST, *_HOMOGENEOUS, *_ACTIVATIONS, Polynomial)


@dataclass(frozen=True)
class Coupling:
    """One layer of hidden units: which tensors they index, and where they enter the next layer.

    `rows` are tensors whose first axis the units index; `scaled` those of them that carry a unit's
    scale (all but running statistics and what precedes a norm); `into` is the next weight, whose
    second axis holds `units` blocks of equal width.

    What enters a unit, times s > 0, makes what leaves it s to the `degree` of what it was: 1
    through ReLU, 2 through a square; 0: no power of s, it may not be rescaled. Units that are
    `even` give the same for z and for 2·`vertex` − z, as a square does; where `vertex` is not 0,
    `bias` is the tensor that moves it.
    """

    units: int
    rows: tuple[str, ...]
    scaled: tuple[str, ...]
    into: str
    degree: int = 1
    even: bool = False
    vertex: float = 0.0
    bias: str = ""

    @property
    def homogeneous(self) -> bool:
        """Whether the units may be rescaled."""
        return self.degree > 0

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor that an order or a scale of the units touches."""
        return (*self.rows, self.into)

    def entering(self, state: State, dtype: torch.dtype) -> Tensor:
        """What enters each unit and carries its scale, (units, n), seen from the vertex."""
        parts = []
        for name in self.scaled:
            part = state[name].to(dtype).reshape(self.units, -1)
            parts.append(part - self.vertex if self.vertex and name == self.bias else part)
        return torch.cat(parts, 1)

    def balancing(self, incoming: Tensor, outgoing: Tensor) -> Tensor:
        """Factors that make what enters and leaves equal in norm, of squared norms (..., units)."""
        alive = (incoming > 1e-20) & (outgoing > 1e-20)
        ratio = (outgoing / incoming.clamp_min(1e-30)).pow(0.5 / (1 + self.degree))
        return torch.where(alive, ratio, torch.ones_like(ratio))


@dataclass
class _Layer:
    """The units that a weight has opened, as far as they have been followed."""

    units: int
    rows: list[str]
    scaled: list[str]
    degree: int = 1
    even: bool = False
    vertex: float = 0.0
    passed: list[nn.Module] = field(default_factory=list)  # since the sum that enters a unit

    def closed(self, into: str) -> Coupling:
        bias = next((n for n in self.scaled if n.rpartition(".")[2] == "bias"), "")
        return Coupling(
            self.units, tuple(self.rows), tuple(self.scaled), into, self.degree, self.even,
            self.vertex, bias if self.vertex else "",
        )  # fmt: skip

    def normed(self, own: list[str]) -> None:
        """A norm undoes the scale of what precedes it; its own scale and shift carry on."""
        self.rows += own
        self.scaled = [n for n in own if n.rsplit(".", 1)[-1] in ("weight", "bias")]
        self.degree = int(self.degree > 0 and bool(self.scaled))
        self.even, self.vertex, self.passed = False, 0.0, []

    def activated(self, polynomial: Polynomial) -> None:
        """Follow the units through a·x² + b·x + c."""
        a, b, c = polynomial.fixed() or (1.0, 1.0, 1.0)  # learned: differs from state to state
        pure = (a == 0) != (b == 0) and c == 0
        first = not any(isinstance(m, _CURVED) for m in self.passed)
        if first and a and polynomial.fixed():
            # About another vertex than 0 what is turned is shifted, too, in the bias alone: zeros
            # that a pool adds at the border would not be.
            biased = any(n.rpartition(".")[2] == "bias" for n in self.scaled)
            apart = any(isinstance(m, _MEANS) for m in self.passed)
            self.even = b == 0 or (biased and not apart)
            self.vertex = -b / (2 * a) if self.even else 0.0
        self.degree = self.degree * (2 if a else 1) if pure else 0
        self.passed.append(polynomial)


def read_chain(model: nn.Module) -> tuple[Coupling, ...]:
    """Walk the leaf modules in order of registration; `()` at the first that breaks the chain."""
    found: list[Coupling] = []
    layer: _Layer | None = None
    for name, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue
        prefix = f"{name}." if name else ""
        own = [prefix + n for n, t in module.state_dict().items() if t.dim() > 0]
        if isinstance(module, _WEIGHTED):
            weight = module.weight
            grouped = isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups != 1
            # One that computes with more than these, as with an adapter, is none of ours.
            if grouped or any(n.removeprefix(prefix) not in ("weight", "bias") for n in own):
                return ()
            if layer is not None:
                if weight.shape[1] % layer.units:
                    return ()
                found.append(layer.closed(prefix + "weight"))
            layer = _Layer(int(weight.shape[0]), own, list(own))
        elif layer is None:
            if own and not isinstance(module, _NORMS):
                return ()
            # What is done to the inputs before the first layer touches no hidden unit.
        elif isinstance(module, _NORMS) and module.num_features == layer.units:
            layer.normed(own)  # another number is of an image that was flattened before
        elif isinstance(module, Polynomial):
            layer.activated(module)
        elif isinstance(module, _POINTWISE + _MEANS + _LARGEST + _HOMOGENEOUS + _ACTIVATIONS):
            layer.degree *= not isinstance(module, _ACTIVATIONS)
            layer.passed.append(module)
        else:
            return ()
    return tuple(found)
