"""The exact codec between a state dict and a vector `v` in R^P, which loses no bit."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from g2d.core.types import State
from g2d.errors import CheckpointError, SettingsError


@dataclass(frozen=True)
class TensorSpec:
    """Where one tensor lives in the vector, and its scale (a power of two, so that it is exact)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    scale: float
    positive: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Codec:
    """An exact, invertible map between a state dict and a vector of P standardised parameters.

    Each tensor is divided by its scale, the power of two nearest to the tensor's typical magnitude:
    a division by a power of two loses nothing, so `decode(encode(state))` equals `state` bit by bit
    (subnormals aside). Tensors out of scope, and integers such as batch norm's counter, are taken
    from the reference. Running variances are kept positive on the way back.
    """

    def __init__(self, specs: Sequence[TensorSpec], rest: State) -> None:
        self.specs = tuple(specs)
        self.rest = {name: tensor.detach().clone() for name, tensor in rest.items()}
        self.size = sum(spec.size for spec in self.specs)
        wide = any(spec.dtype == torch.float64 for spec in self.specs)
        self.dtype = torch.float64 if wide else torch.float32

    @classmethod
    def fit(cls, states: Sequence[State], scope: Sequence[str] = ()) -> Codec:
        """Build the codec of a population; the first state is the reference for what is left out.

        Args:
            states: one or more state dicts of one architecture.
            scope: name patterns (`fc.*`, `*.bias`); empty means every floating tensor.

        Raises:
            SettingsError: a pattern matches no tensor.
        """
        reference = states[0]
        names = [name for name, tensor in reference.items() if tensor.is_floating_point()]
        chosen = _in_scope(names, scope)
        specs, offset = [], 0
        for name in chosen:
            tensor = reference[name]
            spread = max(float(state[name].double().square().mean().sqrt()) for state in states)
            scale = 2.0 ** round(math.log2(spread)) if spread > 1e-30 else 1.0
            positive = name.endswith("running_var")
            specs.append(
                TensorSpec(name, tuple(tensor.shape), tensor.dtype, offset, scale, positive)
            )
            offset += tensor.numel()
        rest = {name: tensor for name, tensor in reference.items() if name not in set(chosen)}
        return cls(specs, rest)

    def encode(self, state: State) -> Tensor:
        """Flatten a state dict to the vector `v`, shape (P,)."""
        parts = [state[s.name].detach().to(self.dtype).flatten() / s.scale for s in self.specs]
        return torch.cat(parts)

    def decode(self, v: Tensor) -> dict[str, Tensor]:
        """Turn a vector of shape (P,) into a complete state dict; the inverse of `encode`."""
        state = {name: tensor.clone() for name, tensor in self.rest.items()}
        for spec, part in zip(self.specs, self._parts(v), strict=True):
            state[spec.name] = part.detach().to(spec.dtype).clone()
        return state

    def tensors(self, v: Tensor) -> dict[str, Tensor]:
        """View `v` as named tensors that carry gradients, for `torch.func.functional_call`.

        Batch norm's running statistics carry none: PyTorch does not differentiate by them.
        """
        named: dict[str, Tensor] = dict(self.rest)
        for spec, part in zip(self.specs, self._parts(v), strict=True):
            tensor = part.to(spec.dtype)
            named[spec.name] = tensor.detach() if _is_statistic(spec.name) else tensor
        return named

    def _parts(self, v: Tensor) -> list[Tensor]:
        if v.shape != (self.size,):
            raise CheckpointError(f"a vector of shape ({self.size},) fits, not {tuple(v.shape)}")
        parts = []
        for spec, flat in zip(self.specs, v.split([s.size for s in self.specs]), strict=True):
            part = flat.view(spec.shape) * spec.scale
            parts.append(part.clamp_min(1e-12) if spec.positive else part)
        return parts

    def describe(self) -> list[list[object]]:
        """Return the tensor table as plain data, for the generator file's metadata."""
        return [[s.name, list(s.shape), str(s.dtype)[6:], s.scale, s.positive] for s in self.specs]

    @classmethod
    def restore(cls, table: Sequence[Sequence[object]], rest: State) -> Codec:
        """Rebuild a codec from `describe()` and the tensors out of scope."""
        specs, offset = [], 0
        for name, shape, dtype, scale, positive in table:
            size = tuple(int(n) for n in shape)  # type: ignore[attr-defined]
            kind = getattr(torch, str(dtype))
            spec = TensorSpec(str(name), size, kind, offset, float(str(scale)), bool(positive))
            specs.append(spec)
            offset += spec.size
        return cls(specs, rest)


def _is_statistic(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("running_mean", "running_var")


def _in_scope(names: Sequence[str], scope: Sequence[str]) -> list[str]:
    if not scope:
        return list(names)
    for pattern in scope:
        if not fnmatch.filter(names, pattern):
            raise SettingsError(f"scope pattern {pattern!r} matches no tensor." + _hint(names))
    return [name for name in names if any(fnmatch.fnmatch(name, p) for p in scope)]


def _hint(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f" The model has: {shown}"
