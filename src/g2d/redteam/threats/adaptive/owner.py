"""What the generator's owner can do with answers: find the parameters that would give them.

The owner draws, takes what answers most alike, and moves it: by its latent, through the decoder,
and in the span of what else lies in its basin. Nothing here attacks or scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from g2d.attacks.reconstruction import Answers, Run, fit_coordinates, misfit
from g2d.core.types import Logits, State
from g2d.generator import Generator
from g2d.redteam.targets import as_logits
from g2d.tasks.task import Task

RATE = 0.05  # of the first step; latents and coordinates of a span both have unit deviation
_KEPT = 1e-4  # a direction of a span that is shorter than this, of the longest, is rounding
DRAWS = 32

_Way = tuple[Run, Logits, Tensor]
"""The network at coordinates, its parameters (P,) at them, and where to begin (d,)."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Parameters (P,) and how far their answers are from those that no fit has seen."""

    v: Tensor
    misfit: float
    way: str


class Owner:
    """The owner of a generator and of exposed generations, who has drawn from it.

    Args:
        exposed: state dicts of generations that were live. source: of the draws.
        logits: False where the task's models answer probabilities.
    """

    def __init__(
        self, task: Task, generator: Generator, exposed: Sequence[State],
        source: torch.Generator, logits: bool = True,
    ) -> None:  # fmt: skip
        self.generator, self._logits = generator, logits
        self._shell: nn.Module = task.model(0).eval().requires_grad_(False)
        drawn = generator.sample(DRAWS, source).float()
        read = [generator.codec.encode(state).float() for state in exposed]
        self.known = torch.cat([drawn, torch.stack(read)]) if read else drawn

    def run(self, v: Tensor, x: Tensor) -> Tensor:
        """Logits (n, classes) of the parameters v (P,), differentiable by both."""
        named = self.generator.codec.tensors(v.to(self.generator.codec.dtype))
        answer: Logits = lambda inputs: functional_call(  # noqa: E731
            self._shell, named, (inputs,), tie_weights=False
        )
        return (answer if self._logits else as_logits(answer))(x)

    @torch.no_grad()
    def nearest(self, answers: Answers) -> int:
        """Which of the known networks answers most alike."""
        apart = [float(misfit(self.run(v, answers.x), answers.logits)) for v in self.known]
        return min(range(len(apart)), key=apart.__getitem__)

    def find(self, answers: Answers, steps: int, source: torch.Generator) -> Fit:
        """The parameters whose answers are nearest to those given; see the module.

        Of the draw as it is, its moved latent and its moved place in the span, the one that fits
        held answers best.
        """
        seen, held = answers.split()
        first = self.known[self.nearest(seen)]
        found = [Fit(first, self._apart(first, held), "as drawn")]
        for way, (run, decode, start) in {
            "latent": self._by_latent(first),
            "span": self._by_span(first),
        }.items():
            if not len(start):
                continue
            moved = fit_coordinates(run, start, seen, steps=steps, rate=RATE, generator=source)
            with torch.no_grad():
                v = decode(moved)
            found.append(Fit(v, self._apart(v, held), way))
        return min(found, key=lambda fit: fit.misfit)

    @torch.no_grad()
    def _apart(self, v: Tensor, held: Answers) -> float:
        value = float(misfit(self.run(v, held.x), held.logits))
        return math.inf if math.isnan(value) else value

    def _by_latent(self, v: Tensor) -> _Way:
        space = self.generator.space
        with torch.no_grad():
            start = space.encode(v)
        return (lambda z, x: self.run(space.decode(z), x)), space.decode, start

    def _by_span(self, v: Tensor) -> _Way:
        """Around v (P,), the directions in which the known networks of its basin lie."""
        inside = self.known[self.generator.space.mates(v, list(self.known))]
        frame = _directions(inside - v)

        def decode(c: Tensor) -> Tensor:
            return v + c @ frame

        return (lambda c, x: self.run(decode(c), x)), decode, torch.zeros(len(frame))


def _directions(moves: Tensor) -> Tensor:
    """Orthogonal directions (r, P) of moves (n, P), each as long as a deviation along it."""
    if not len(moves):
        return moves
    values, vectors = torch.linalg.eigh((moves @ moves.T).double())
    kept = values > _KEPT**2 * values[-1].clamp_min(1e-30)
    rotated = vectors[:, kept].T.to(moves.dtype) @ moves
    return rotated / len(moves) ** 0.5
