"""A latent space without a fit: candidates begin as soups, means of a few members of one basin.

Measured against the attacker who sorts exposures by basin, what a candidate begins with does not
matter and what it is polished against does (docs/benchmarks/basins.md): this is the free sampler
that the autoencoder and the diffusion model have to beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from g2d.errors import CheckpointError
from g2d.generator.autoencoder import Span
from g2d.generator.guidance import Objective
from g2d.generator.latent_space import FitPlan, LatentSpace, Population, longest_rested
from g2d.weights.codec import Codec

PARTS = 4
"""Members of a soup, at most: as many as the table's soups have."""


@dataclass(frozen=True, eq=False)
class SoupSpace(LatentSpace):
    """Model soups (Wortsman et al. 2022, arXiv 2203.05482) of random members of one basin.

    A latent (r,) is a vector's standardised coordinates in the members' affine frame.

    Attributes:
        members: coordinates (K, r). numbers: the basin of each, (K,). retired: basins that nothing
            begins in, (R,); they have their mean alone, for what is exposed may be of them.
    """

    codec: Codec
    span: Span
    members: Tensor
    numbers: Tensor
    retired: Tensor
    weighs_resistance: ClassVar[bool] = False

    @classmethod
    def fit(cls, population: Population, plan: FitPlan) -> Self:
        """Keep the members in their frame: nothing is trained; see `LatentSpace.fit`."""
        p, retired = population, torch.tensor(plan.retired, dtype=torch.long)
        vectors, numbers = _shortened(p.vectors, p.basins.long(), retired)
        span = Span.fit(vectors, numbers.tolist())
        plan.progress("soups", 1, 1)
        return cls(p.codec, span, span.project(vectors), numbers, retired)

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator, exposed: Tensor | None = None) -> Tensor:
        """Draw soups (count, r) of a random basin each; nothing is conditioned on `exposed`."""
        return self._drawn(self.basins(), count, generator)

    @torch.no_grad()
    def _drawn(self, basins: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
        """Draw soups (count, r), each of a random one of these basins."""
        known = torch.tensor(basins)
        of = known[torch.randint(len(known), (count,), generator=generator)]
        return torch.stack([self._soup(int(basin), generator) for basin in of])

    def _soup(self, basin: int, generator: torch.Generator) -> Tensor:
        own = self.members[self.numbers == basin]
        return own[torch.randperm(len(own), generator=generator)[:PARTS]].mean(0)

    def draw_guided(
        self, objective: Objective, generator: torch.Generator, exposed: Tensor | None = None
    ) -> Tensor:
        """The best of `particles` soups: of the basins that it is to begin in, if there are any;
        else with `resting` of the one exposed longest ago, of those in memory."""
        begin = [basin for basin in self.basins() if basin in objective.begin]
        z = self._drawn(begin or self.basins(), objective.settings.particles, generator)
        if objective.settings.resting and not begin:
            own = self._nearest(z)
            z = z[longest_rested(own, [self._basin(v) for v in objective.exposed])]
        return z[objective.best(self.decode, z)].detach()

    @torch.no_grad()
    def mates(self, v: Tensor, exposed: Sequence[Tensor]) -> list[int]:
        """Places of the exposed vectors (P,) whose nearest basin is that of v (P,)."""
        own = self._basin(v)
        return [place for place, other in enumerate(exposed) if self._basin(other) == own]

    def basins(self) -> tuple[int, ...]:
        """Every basin that is not retired."""
        known, gone = self.numbers.unique().tolist(), set(self.retired.tolist())
        return tuple(basin for basin in known if basin not in gone)

    def basin_of(self, v: Tensor) -> int:
        """The basin, retired ones among them, whose centre a vector (P,) is nearest to."""
        return self._basin(v)

    def _basin(self, v: Tensor) -> int:
        return int(self._nearest(self.encode(v.float()).unsqueeze(0)))

    @torch.no_grad()
    def _nearest(self, c: Tensor) -> Tensor:
        """The basin (n,) whose centre, in R^P, coordinates (n, r) are nearest to.

        `Span`'s basis is orthonormal, so distances of unscaled coordinates are those in R^P.
        """
        known = self.numbers.unique()
        centres = torch.stack([self.members[self.numbers == b].mean(0) for b in known])
        return known[torch.cdist(c * self.span.spread, centres * self.span.spread).argmin(1)]

    def encode(self, v: Tensor) -> Tensor:
        """Coordinates (…, r) of vectors (…, P); what lies outside the frame is lost."""
        return self.span.project(v)

    def decode(self, z: Tensor) -> Tensor:
        """Vectors (…, P) of coordinates (…, r)."""
        return self.span.lift(z)

    def placed(self, device: str) -> SoupSpace:
        """The same space, whose vectors are on a device."""
        return replace(self, span=self.span.placed(device))

    def tensors(self) -> dict[str, Tensor]:
        """The frame and the members in it."""
        span = {"mean": self.span.mean, "basis": self.span.basis, "spread": self.span.spread}
        gone = {"soup.retired": self.retired} if len(self.retired) else {}
        return {f"soup.{name}": t for name, t in span.items()} | gone | {
            "soup.members": self.members, "soup.basins": self.numbers,
        }  # fmt: skip

    @classmethod
    def restore(
        cls, codec: Codec, tensors: Mapping[str, Tensor], described: Mapping[str, str]
    ) -> Self:
        """The space again, from what `tensors` gave.

        Raises:
            CheckpointError: a tensor of it is missing.
        """
        names = ("mean", "basis", "spread", "members", "basins")
        if missing := [name for name in names if f"soup.{name}" not in tensors]:
            raise CheckpointError(
                f"the generator file lacks {', '.join(missing)} of its soups; run `g2d fit` again"
            )
        mean, basis, spread, members, basins = (tensors[f"soup.{name}"] for name in names)
        retired = tensors.get("soup.retired", torch.zeros(0, dtype=torch.long))
        return cls(codec, Span(mean, basis, spread), members, basins, retired)


def _shortened(vectors: Tensor, numbers: Tensor, retired: Tensor) -> tuple[Tensor, Tensor]:
    """Members (K, P) and their basins (K,), of each retired basin the mean of its members alone."""
    gone = torch.isin(numbers, retired)
    if not bool(gone.any()):
        return vectors, numbers
    known = numbers[gone].unique()
    means = torch.stack([vectors[numbers == basin].mean(0) for basin in known])
    return torch.cat([means, vectors[~gone]]), torch.cat([known, numbers[~gone]])
