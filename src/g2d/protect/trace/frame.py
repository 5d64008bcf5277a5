"""The frame that networks are compared in: symmetries undone, what counts as one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from g2d.core.types import State
from g2d.protect.trace.scales import Scales
from g2d.protect.trace.structure import Matrix
from g2d.weights.symmetry import Coupling, align, balance, incoming, permute

MOST = 1 << 17
"""Coordinates that are compared, at most: of a larger network a fixed random choice of them.

Cosines over a random half million or over all of them tell the same; a thousand generations of
float32 vectors of this length are half a gigabyte.
"""

_MOST_UNITS = 512  # whose scales are fitted: as many vectors of MOST are 256 MiB
_CHUNK = 64  # networks that are balanced at once


@dataclass(frozen=True, eq=False)
class Frame:
    """Where networks that lie near a reference are compared with each other and with a suspect.

    A vault keeps its networks as they were trained, those of a basin with their hidden units in
    one order; so they are only balanced (`own`). A suspect is aligned, too, once, to the reference
    (`onto`): aligned anew to each network it would also be drawn a little towards each.

    Attributes:
        reference: a balanced state dict. chain: verified couplings of hidden units; (): symmetries
            are not undone. names: tensors that count, in order: floating or complex.
    """

    reference: State
    chain: Sequence[Coupling]
    names: tuple[str, ...]

    def own(self, states: Sequence[State]) -> Tensor:
        """Vectors (n, P) float32 of networks whose units have the reference's order."""
        parts = []
        for first in range(0, len(states), _CHUNK):
            even = _balance_many(states[first : first + _CHUNK], self.names, self.chain)
            flat = [even[name].reshape(len(even[name]), -1) for name in self.names]
            parts.append(self._chosen(torch.cat(flat, 1)).float())
        return torch.cat(parts)

    def onto(self, state: State) -> Tensor:
        """The vector (P,) float32 of any network, its units brought into the reference's order."""
        even = balance(state, self.chain)
        even = permute(even, self.chain, incoming(self.reference, even, self.chain))
        return self._vector(align(self.reference, even, self.chain))

    @cached_property
    def tensor_of(self) -> Tensor:
        """Which tensor of `names` each coordinate is of, (P,) int64."""
        sizes = [_flat(self.reference[name]).numel() for name in self.names]
        return self._chosen(torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)))

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """Rows (output units) and columns of each tensor of `names`, where all of it is compared.

        A vector is a matrix of one column.
        """
        whole = sum(_flat(self.reference[name]).numel() for name in self.names) <= MOST
        return tuple(_matrix(self.reference[name]) if whole else None for name in self.names)

    @cached_property
    def scales(self) -> Scales | None:
        """What scales of hidden units touch; None: there are none, or too many to be fitted."""
        layers = [layer for layer in self.chain if layer.homogeneous]
        count = sum(layer.units for layer in layers)
        if not 0 < count <= _MOST_UNITS:
            return None
        flat = {name: _flat(self.reference[name]) for name in self.names}
        enters, leaves = ({n: torch.full_like(t, count) for n, t in flat.items()} for _ in "io")
        degree, vertex = ({n: torch.zeros_like(t) for n, t in flat.items()} for _ in "dv")
        first = 0
        for layer in layers:
            units = torch.arange(first, first + layer.units).float()
            for name in flat.keys() & {*layer.scaled}:
                enters[name] = units.repeat_interleave(len(flat[name]) // layer.units)
                vertex[name] += layer.vertex * (name == layer.bias)
            if layer.into in flat:
                outputs, size = len(self.reference[layer.into]), len(flat[layer.into])
                width = size // layer.units // outputs
                leaves[layer.into] = units.repeat_interleave(width).repeat(outputs)
                degree[layer.into] += layer.degree
            first += layer.units
        put = [self._chosen(torch.cat([part[n] for n in self.names]))
               for part in (enters, leaves, degree, vertex, flat)]  # fmt: skip
        return Scales(count, put[0].long(), put[1].long(), *put[2:])

    def _vector(self, state: State) -> Tensor:
        return self._chosen(torch.cat([_flat(state[name]) for name in self.names]))

    def _chosen(self, flat: Tensor) -> Tensor:
        """Those of all coordinates (..., P) that are compared."""
        size = flat.shape[-1]
        if size <= MOST:
            return flat
        source = torch.Generator().manual_seed(0)
        return flat[..., torch.randperm(size, generator=source)[:MOST].sort().values]


def _balance_many(
    states: Sequence[State], names: Sequence[str], chain: Sequence[Coupling]
) -> dict[str, Tensor]:
    """What `balance` makes of many networks, stacked (n, ...): far faster than one by one.

    Only tensors of `names`, and those that units touch, are there.
    """
    touched = {name for layer in chain for name in layer.tensors}
    even = {
        name: torch.stack([_real(state[name]) for state in states])
        for name in dict.fromkeys((*names, *touched))
    }
    for _ in range(10):
        for layer in chain:
            if not layer.homogeneous:
                continue
            into = even[layer.into]
            blocks = into.reshape(into.shape[0], into.shape[1], layer.units, -1)
            outgoing = blocks.square().sum((1, 3))
            incoming = torch.zeros_like(outgoing)
            for name in layer.scaled:
                incoming += even[name].flatten(1).view(len(states), layer.units, -1).square().sum(2)
            factor = layer.balancing(incoming, outgoing)
            for name in layer.scaled:
                tensor = even[name]
                even[name] = tensor * factor.view(*factor.shape, *[1] * (tensor.dim() - 2))
            leaving = factor.pow(layer.degree)
            even[layer.into] = (blocks / leaving[:, None, :, None]).view(into.shape)
    return even


def _matrix(tensor: Tensor) -> Matrix:
    if not tensor.dim() or not tensor.numel() or tensor.is_complex():
        return None
    return len(tensor), tensor.numel() // len(tensor)


def _real(tensor: Tensor) -> Tensor:
    """A tensor's numbers as float64; complex ones, which nothing rescales, as pairs."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.double()


def _flat(tensor: Tensor) -> Tensor:
    """A tensor's numbers, (n,) float32; a complex one's as pairs."""
    return _real(tensor).float().flatten()
