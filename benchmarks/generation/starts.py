"""Where candidates of the table that decides begin: free draws, basin by basin, and the product's.

A start is a vector of one basin. A chain makes one network after the other, as rotations would:
basins in turn (the one whose exposure lies farthest back) or at random, with polish or without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.generation.ways import Maker
from g2d.core.types import State
from g2d.generator import Exposure
from g2d.generator.guidance import Objective, polish
from g2d.settings import GuidanceSettings


@dataclass
class Chain:
    """Networks in the order in which they are live, and what one of them costs in CPU seconds.

    Attributes:
        owner: what an attacker who knows all but the randomness draws in place of the first target.
    """

    states: list[State]
    cpu: float = 0.0
    owner: list[State] = field(default_factory=list)


Start = Callable[[int, torch.Generator], Tensor]
"""Draws a vector (P,) of a basin."""


class Starts:
    """Free draws from the members of one vault."""

    def __init__(self, maker: Maker) -> None:
        self.maker, self.space = maker, maker.generator.space
        self.known = maker.basins.unique().tolist()

    def _of(self, basin: int) -> Tensor:
        return self.maker.V[self.maker.basins == basin]

    def member(self, basin: int, g: torch.Generator) -> Tensor:
        """A random member."""
        own = self._of(basin)
        return own[int(torch.randint(len(own), (), generator=g))]

    def noise(self, basin: int, g: torch.Generator) -> Tensor:
        """A random member, and Gaussian noise of a tenth of each tensor's magnitude."""
        codec = self.maker.generator.codec
        state = codec.decode(self.member(basin, g))
        return codec.encode({
            n: t + 0.1 * t.square().mean().sqrt() * torch.randn(t.shape, generator=g)
            for n, t in state.items()
        })  # fmt: skip

    def soup(self, basin: int, g: torch.Generator) -> Tensor:
        """The mean of four random members."""
        own = self._of(basin)
        return own[torch.randperm(len(own), generator=g)[:4]].mean(0)

    def interpolation(self, basin: int, g: torch.Generator) -> Tensor:
        """A random point between two random members."""
        own = self._of(basin)
        one, other = own[torch.randperm(len(own), generator=g)[:2]]
        return torch.lerp(one, other, float(torch.rand((), generator=g)))

    def gaussian(self, basin: int, g: torch.Generator) -> Tensor:
        """A draw from the Gaussian of the basin's members: one matrix product."""
        own = self._of(basin)
        mean = own.mean(0)
        return mean + torch.randn(len(own), generator=g) / (len(own) - 1) ** 0.5 @ (own - mean)

    @torch.no_grad()
    def diffusion(self, basin: int, g: torch.Generator) -> Tensor:
        """The first unguided draw of the diffusion model that lies in the basin."""
        like = self._of(basin).mean(0)
        for _ in range(8):
            for v in self.space.settle(self.space.draw(32, g)):
                if self.space.mates(like, [v]):
                    return v
        raise AssertionError("256 draws, and none in this basin")

    # --- chains ---

    def chain(
        self, name: str, count: int, start: Start, resting: bool,
        settings: GuidanceSettings | None = None, known: int = 0, proposals: int = 0,
    ) -> Chain:  # fmt: skip
        """`count` networks after the base.

        Args:
            resting: basins in turn, not at random. settings: how to polish; None: not at all.
            known: how many networks the attacker reads before the first target. proposals: how many
                the owner draws in place of it, with other randomness.
        """
        g, own = self.maker.source(name), self.maker.source(f"{name}, owner")
        made = Chain([self.maker.base])
        exposures: list[Exposure] = []
        for number in range(count):
            began = time.process_time()
            if settings:
                exposures.append(self.maker.expose(made.states[-1], number, settings))
            state = self._next(number, start, resting, settings, exposures, g)
            made.cpu += (time.process_time() - began) / count
            if number == known - 1:
                made.owner = [
                    self._next(number, start, resting, settings, exposures, own)
                    for _ in range(proposals)
                ]
            made.states.append(state)
        return made

    def _next(
        self, number: int, start: Start, resting: bool, settings: GuidanceSettings | None,
        exposures: list[Exposure], g: torch.Generator,
    ) -> State:  # fmt: skip
        place = number if resting else int(torch.randint(len(self.known), (), generator=g))
        v = start(self.known[place % len(self.known)], g)
        if settings:
            v = self.polished(v, exposures, settings, g)
        return self.maker.generator.to_state(v)

    def polished(
        self, v: Tensor, exposures: list[Exposure], settings: GuidanceSettings, g: torch.Generator
    ) -> Tensor:
        """A vector (P,) after the product's polish against what it is to be unlike."""
        generator = self.maker.generator
        asked = Objective(
            self.maker.task, generator.codec, exposures, settings, g, generator.bank
        )  # fmt: skip
        return polish(asked.for_polish(self.space.mates(v, asked.exposed)), v)

    def proposed(
        self, name: str, count: int, settings: GuidanceSettings, known: int = 0, proposals: int = 0
    ) -> Chain:
        """A chain of what the generator proposes, gates aside; see `chain`."""
        g, own = self.maker.source(name), self.maker.source(f"{name}, owner")
        made = Chain([self.maker.base])
        exposures: list[Exposure] = []
        for number in range(count):
            began = time.process_time()
            exposures.append(self.maker.expose(made.states[-1], number, settings))
            state = self.proposal(exposures, settings, g)
            made.cpu += (time.process_time() - began) / count
            if number == known - 1:
                made.owner = [self.proposal(exposures, settings, own) for _ in range(proposals)]
            made.states.append(state)
        return made

    def proposal(
        self, exposures: Sequence[Exposure], settings: GuidanceSettings, g: torch.Generator
    ) -> State:
        """One candidate of the product, not judged."""
        generator = self.maker.generator
        return generator.to_state(generator.propose(self.maker.task, exposures, settings, g))
