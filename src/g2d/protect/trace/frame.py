"""The frame that networks are compared in: symmetries undone, what counts laid out as one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from g2d.core.types import State
from g2d.weights.symmetry import Coupling, align, balance

MOST = 1 << 17
"""Coordinates that are compared, at most: of a larger network a fixed random choice of them.

Cosines over a random half million or over all of them tell the same; a thousand generations of
float32 vectors of this length are half a gigabyte.
"""


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

    def own(self, state: State) -> Tensor:
        """The vector (P,) float32 of a network whose units have the reference's order."""
        return self._vector(balance(state, self.chain))

    def onto(self, state: State) -> Tensor:
        """The vector (P,) float32 of any network, its units brought into the reference's order."""
        even = balance(state, self.chain)
        return self._vector(align(self.reference, even, self.chain))

    @cached_property
    def tensor_of(self) -> Tensor:
        """Which tensor of `names` each coordinate is of, (P,) int64."""
        sizes = [_flat(self.reference[name]).numel() for name in self.names]
        return self._chosen(torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)))

    def _vector(self, state: State) -> Tensor:
        return self._chosen(torch.cat([_flat(state[name]) for name in self.names]))

    def _chosen(self, flat: Tensor) -> Tensor:
        if len(flat) <= MOST:
            return flat
        source = torch.Generator().manual_seed(0)
        return flat[torch.randperm(len(flat), generator=source)[:MOST].sort().values]


def _flat(tensor: Tensor) -> Tensor:
    """A tensor's numbers, (n,) float32; a complex one's as pairs."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.float().flatten()
