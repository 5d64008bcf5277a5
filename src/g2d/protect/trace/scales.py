"""How a suspect's hidden units are scaled is not known: it is fitted with everything else.

A unit's scale changes no function, so networks are balanced before they are compared. That is off
where a suspect was changed: what is pruned has other norms, and a mean of networks is balanced as a
whole and not part by part. Left alone, such scales look like noise that lies in few directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from g2d.core.types import Array

_FURTHEST = 0.5  # logarithm of a scale that one step may find


@dataclass(frozen=True, eq=False)
class Scales:
    """Which of P coordinates the scales of H hidden units touch.

    Attributes:
        units: H. enters, leaves: the unit that a coordinate enters, and that it leaves, (P,); H:
            it is none's.
        degree: what leaves a unit is divided by its scale to this power, (P,). vertex: the value of
            a coordinate that no scale moves, (P,). reference: a network (P,) to begin from.
    """

    units: int
    enters: Tensor
    leaves: Tensor
    degree: Tensor
    vertex: Tensor
    reference: Tensor

    def seen(self, kept: Tensor) -> Scales:
        """The same of some coordinates."""
        names = ("enters", "leaves", "degree", "vertex", "reference")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def directions(self, network: Tensor | None = None) -> Tensor:
        """Where a network (P,), or the reference, moves as each unit is scaled up, (H, P) float32.

        By the logarithm of the scale, at 1.
        """
        at = self.reference if network is None else network.float()
        made = torch.zeros(self.units + 1, len(at))
        place = torch.arange(len(at))
        made[self.enters, place] += at - self.vertex
        made[self.leaves, place] -= self.degree * at
        return made[: self.units]

    def products(
        self, network: Tensor, vectors: Tensor, tensor_of: Tensor, tensors: int
    ) -> tuple[Tensor, Tensor]:
        """Of the directions of a network with each other and with vectors (k, P), by tensor.

        (tensors, H, H) and (tensors, H, k) in float64. A coordinate is of two units at most, so
        sums over coordinates do what products of dense matrices would.
        """
        at, few = network.double(), self.units + 1
        entering, leaving = at - self.vertex, -self.degree * at
        own = torch.zeros(tensors * few * few, dtype=torch.float64)
        sides = ((self.enters, entering), (self.leaves, leaving))
        for one, of_one in sides:
            for other, of_other in sides:
                own.index_add_(0, (tensor_of * few + one) * few + other, of_one * of_other)
        cross = torch.zeros(tensors * few, len(vectors), dtype=torch.float64)
        for unit, moved in sides:
            cross.index_add_(0, tensor_of * few + unit, (vectors.double() * moved).T)
        count = self.units
        return (
            own.view(tensors, few, few)[:, :count, :count],
            cross.view(tensors, few, -1)[:, :count],
        )

    def undone(self, network: Tensor, scales: Array) -> Tensor:
        """A network (P,) whose units were scaled by exp(`scales`), (H,), as it was before."""
        by = torch.from_numpy(scales).clamp(-_FURTHEST, _FURTHEST)
        by = torch.cat([by, by.new_zeros(1)])
        entering, leaving = torch.exp(-by[self.enters]), torch.exp(self.degree * by[self.leaves])
        moved = (network.double() - self.vertex) * entering * leaving + self.vertex
        return moved.to(network.dtype)
