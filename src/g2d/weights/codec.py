"""The exact codec between a state dict and a vector `v` in R^P, which loses no bit."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from g2d.core.types import State
from g2d.errors import CheckpointError, SettingsError
from g2d.weights.layout import Layout, is_extra, is_number


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
        """Number of elements of the vector: a complex number takes two."""
        return math.prod(self.shape) * (2 if self.dtype.is_complex else 1)


class Codec:
    """An exact, invertible map between a state dict and a vector of P standardised parameters.

    Each tensor is divided by its scale, the power of two nearest to the tensor's typical magnitude:
    a division by a power of two loses nothing, so `decode(encode(state))` equals `state` bit by bit
    (subnormals aside). Tensors out of scope, and integers such as batch norm's counter, are taken
    from the reference. Running variances are kept positive on the way back. A tied tensor is in the
    vector once (`ties`: its further names, each to the first); a complex one as pairs of reals.
    """

    def __init__(
        self, specs: Sequence[TensorSpec], rest: State, ties: Mapping[str, str] | None = None
    ) -> None:
        self.specs = tuple(specs)
        self.rest = {name: tensor.detach().clone() for name, tensor in rest.items()}
        self.ties = dict(ties or {})
        self._placed: tuple[torch.device, dict[str, Tensor]] | None = None
        self.size = sum(spec.size for spec in self.specs)
        wide = {torch.float64, torch.complex128} & {spec.dtype for spec in self.specs}
        self.dtype = torch.float64 if wide else torch.float32

    @classmethod
    def fit(
        cls, states: Sequence[State], scope: Sequence[str] = (), layout: Layout | None = None
    ) -> Codec:
        """Build the codec of a population; the first state is the reference for what is left out.

        Args:
            states: one or more state dicts of one architecture.
            scope: name patterns (`fc.*`, `*.bias`); empty means all that moves.
            layout: the architecture's, which knows what moves and what is tied; None: every
                floating tensor moves, and none is tied.

        Raises:
            SettingsError: a pattern matches no tensor, or nothing is in scope.
        """
        reference, ties = states[0], layout.ties if layout else {}
        names = [name for name, tensor in reference.items() if is_number(tensor)]
        wanted = layout.in_scope(scope) if layout else set(_in_scope(names, scope))
        chosen = [name for name in names if name in wanted and name not in ties]
        specs, offset = [], 0
        for name in chosen:
            tensor = reference[name]
            spread = max(float(_wide(state[name]).square().mean().sqrt()) for state in states)
            scale = 2.0 ** round(math.log2(spread)) if spread > 1e-30 else 1.0
            positive = name.endswith("running_var")
            specs.append(
                TensorSpec(name, tuple(tensor.shape), tensor.dtype, offset, scale, positive)
            )
            offset += specs[-1].size
        left = {name: t for name, t in reference.items() if name not in {*chosen, *ties}}
        return cls(specs, left, ties)

    def encode(self, state: State) -> Tensor:
        """Flatten a state dict to the vector `v`, shape (P,)."""
        tensors = [(_real(state[s.name].detach()), s.scale) for s in self.specs]
        return torch.cat([tensor.to(self.dtype).flatten() / scale for tensor, scale in tensors])

    def decode(self, v: Tensor) -> dict[str, Tensor]:
        """Turn a vector of shape (P,) into a complete state dict; the inverse of `encode`."""
        state = {name: tensor.clone() for name, tensor in self.rest.items()}
        for spec, part in zip(self.specs, self._parts(v), strict=True):
            state[spec.name] = part.detach().to(spec.dtype).clone()
        return state | {name: state[first].clone() for name, first in self.ties.items()}

    def tensors(self, v: Tensor) -> dict[str, Tensor]:
        """View `v` as named tensors that carry gradients, for `torch.func.functional_call`.

        Batch norm's running statistics carry none: PyTorch does not differentiate by them.
        """
        named = {name: t for name, t in self._rest_on(v.device).items() if not is_extra(name)}
        for spec, part in zip(self.specs, self._parts(v), strict=True):
            tensor = part.to(spec.dtype)
            named[spec.name] = tensor.detach() if _is_statistic(spec.name) else tensor
        # The very same tensor under each name: functional_call refuses two for what is tied.
        return named | {name: named[first] for name, first in self.ties.items()}

    def _rest_on(self, device: torch.device) -> dict[str, Tensor]:
        """What is out of scope, on a device; the last one's copy is kept."""
        if device.type == "cpu":
            return self.rest
        if self._placed is None or self._placed[0] != device:
            self._placed = device, {name: t.to(device) for name, t in self.rest.items()}
        return self._placed[1]

    def _parts(self, v: Tensor) -> list[Tensor]:
        if v.shape != (self.size,):
            raise CheckpointError(f"a vector of shape ({self.size},) fits, not {tuple(v.shape)}")
        parts = []
        for spec, flat in zip(self.specs, v.split([s.size for s in self.specs]), strict=True):
            part = _shaped(flat * spec.scale, spec)
            parts.append(part.clamp_min(1e-12) if spec.positive else part)
        return parts

    def describe(self) -> list[list[object]]:
        """Return the tensor table as plain data, for the generator file's metadata."""
        return [[s.name, list(s.shape), str(s.dtype)[6:], s.scale, s.positive] for s in self.specs]

    @classmethod
    def restore(
        cls,
        table: Sequence[Sequence[object]],
        rest: State,
        ties: Mapping[str, str] | None = None,
    ) -> Codec:
        """Rebuild a codec from `describe()`, the tensors out of scope and `ties`."""
        specs, offset = [], 0
        for name, shape, dtype, scale, positive in table:
            size = tuple(int(n) for n in shape)  # type: ignore[attr-defined]
            kind = getattr(torch, str(dtype))
            spec = TensorSpec(str(name), size, kind, offset, float(str(scale)), bool(positive))
            specs.append(spec)
            offset += spec.size
        return cls(specs, rest, ties)


def _real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs along a last axis; anything else as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _wide(tensor: Tensor) -> Tensor:
    return _real(tensor).double()


def _shaped(flat: Tensor, spec: TensorSpec) -> Tensor:
    if spec.dtype.is_complex:
        pairs = flat.view(*spec.shape, 2)  # torch.view_as_complex would ask for an even offset
        return torch.complex(pairs[..., 0], pairs[..., 1])
    return flat.view(spec.shape)


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
