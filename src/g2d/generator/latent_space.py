"""A latent space: between parameter vectors and the latents that candidates are drawn from.

Whoever uses a generator knows this protocol and nothing of what lies behind it: spans, coordinates
and denoisers are an implementation's own. Which spaces there are is listed at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from g2d.core.imports import import_attribute
from g2d.core.types import Progress
from g2d.errors import SettingsError
from g2d.generator.guidance import Objective
from g2d.settings import AutoencoderSettings, DiffusionSettings
from g2d.tasks.task import Task
from g2d.weights.codec import Codec


@dataclass(frozen=True, eq=False)
class Population:
    """What a space is fitted on: members as vectors (K, P), and the basin of each, (K,).

    `base` (P,) are the original parameters; `resistance[i, j]` is the error of member j on attacks
    crafted on member i, or None if that is unknown. `codec` lies between vectors and state dicts.
    """

    task: Task
    codec: Codec
    vectors: Tensor
    basins: Tensor
    base: Tensor
    resistance: Tensor | None = None


@dataclass(frozen=True)
class FitPlan:
    """How to fit: the same seed gives the same space, byte for byte, on the same machine.

    No candidate begins in a basin that is `retired`; where a space can be told, see `basins`.
    """

    autoencoder: AutoencoderSettings
    diffusion: DiffusionSettings
    seed: int
    progress: Progress = lambda *_: None
    retired: tuple[int, ...] = ()


class LatentSpace(Protocol):
    """Latents z (d,) of parameter vectors v (P,); inherit from it for what can stay as it is.

    `codec` turns vectors into state dicts and back. Names in `tensors` begin with neither
    "rest." nor "bank.".
    """

    codec: Codec
    weighs_resistance: ClassVar[bool] = True
    """Whether `fit` looks at `Population.resistance`, which costs the square of the members."""

    @classmethod
    def fit(cls, population: Population, plan: FitPlan) -> Self:
        """Fit the space on a population.

        Raises:
            PopulationError: fewer than two members, or all equal.
            GenerationError: the fit diverged.
        """
        ...

    def draw(self, count: int, generator: torch.Generator, exposed: Tensor | None = None) -> Tensor:
        """Draw latents (count, d) without guidance; `exposed` (m, P) may be conditioned on."""
        ...

    def encode(self, v: Tensor) -> Tensor:
        """Latents (…, d) of vectors (…, P)."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Vectors (…, P) of latents (…, d), differentiable."""
        ...

    def settle(self, z: Tensor) -> Tensor:
        """Vectors (n, P) of latents (n, d) that nobody will guide: none between two basins."""
        with torch.no_grad():
            return self.decode(z)

    def placed(self, device: str) -> Self:
        """The same space with what has the size of R^P on a device, where it can be moved.

        Latents stay on the CPU; `decode` gives vectors there, and `encode` takes them from there.
        """
        return self

    def to_state(self, v: Tensor) -> dict[str, Tensor]:
        """The state dict of a vector (P,)."""
        return self.codec.decode(v.cpu())

    def draw_guided(
        self, objective: Objective, generator: torch.Generator, exposed: Tensor | None = None
    ) -> Tensor:
        """Draw the latent (d,) that guidance starts from: the best of `particles` draws."""
        z = self.draw(objective.settings.particles, generator, exposed)
        return z[objective.best(self.decode, z)].detach()

    def mates(self, v: Tensor, exposed: Sequence[Tensor]) -> list[int]:
        """Places of the exposed vectors (P,) that an attacker would put in v's basin; here all."""
        return list(range(len(exposed)))

    def basins(self) -> tuple[int, ...]:
        """The basins that candidates can be told to begin in (`Objective.begin`); (): in none."""
        return ()

    def basin_of(self, v: Tensor) -> int | None:
        """The basin, by its number in the population, of a vector (P,); None: it is not told."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Everything that was fitted but the codec, by name, for the generator's file."""
        ...

    def describe(self) -> dict[str, str]:
        """Plain texts that `restore` needs beside the tensors."""
        return {}

    @classmethod
    def restore(
        cls, codec: Codec, tensors: Mapping[str, Tensor], described: Mapping[str, str]
    ) -> Self:
        """The space again, from what `tensors` and `describe` gave."""
        ...


def longest_rested(own: Tensor, exposed: Sequence[int]) -> Tensor:
    """Which draws (n,), as bools, are of the basin, among theirs, that was exposed longest ago.

    Args:
        own: the basin of each draw. exposed: basins of the exposed generations in memory, oldest
            first. A basin that none of them is of has rested longer than all others.
    """
    seen = {int(basin): -1 for basin in own.unique()}
    for place, basin in enumerate(exposed):
        if basin in seen:
            seen[basin] = place
    return own == min(seen, key=seen.__getitem__)


DEFAULT = "diffusion"
"""The space that settings name unless they say otherwise."""


def find_space(name: str) -> type[LatentSpace]:
    """The kind of latent space that `[generator] space` names: built in, or 'module:Class'.

    Raises:
        SettingsError: there is none of this name, or it lacks a method.
    """
    from g2d.generator.diffusion_space import DiffusionSpace
    from g2d.generator.soup_space import SoupSpace

    known: dict[str, type[LatentSpace]] = {DEFAULT: DiffusionSpace, "soup": SoupSpace}
    if name in known:
        return known[name]
    if ":" not in name:
        raise SettingsError(
            f"[generator] space: there is no {name!r}; built in: {', '.join(known)}; your own is"
            " named 'module:Class'"
        )
    found: Any = import_attribute(name, "latent space", SettingsError)
    if not (isinstance(found, type) and LatentSpace in found.__mro__):
        raise SettingsError(
            f"latent space {name!r} is not a class that inherits from"
            " g2d.generator.latent_space.LatentSpace"
        )
    return found
