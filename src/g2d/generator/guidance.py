"""Guidance: what moves a sample away from the attacks that exposed generations invite.

During the last steps of the reverse process, on the finished latent, and at the end in full weight
space, a candidate descends the weighted sum of `terms` (docs/method.md), on the guide split and,
if asked for, on attacks that the population kept: no data of gates or of tests. Which latent space
it is drawn from does not matter here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from g2d.core.adam import Adam
from g2d.core.types import Logits, Tick
from g2d.generator.exposure import Exposure
from g2d.generator.terms import POLISH_TERMS, Batch, Term, TermContext, make_terms
from g2d.protect.watermark.mark import Mark
from g2d.settings import GuidanceSettings
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import Batches, NewAndOld, schedule
from g2d.weights.codec import Codec

if TYPE_CHECKING:
    from g2d.generator.latent_space import LatentSpace


class Objective:
    """The guidance objective as a function of v, drawing fresh batches each call.

    `begin`: basins that a candidate is to begin in, where its space knows them; (): in any.
    `base`: the base's logits, which `base_weight` asks for.
    """

    def __init__(
        self,
        task: Task,
        codec: Codec,
        exposures: Sequence[Exposure],
        settings: GuidanceSettings,
        generator: torch.Generator,
        bank: Split | None = None,
        mark: Mark | None = None,
        begin: Sequence[int] = (),
        base: Logits | None = None,
    ) -> None:
        self.settings, self.begin = settings, tuple(begin)
        split, later = task.splits.guiding, task.splits.added("guiding")
        self.clean = (
            NewAndOld(task, split, settings.batch, generator, later)
            if later
            else Batches(task, split, settings.batch, generator)
        )
        recent = list(exposures)[-settings.memory :] if settings.memory else []
        self.exposed = [exposure.v for exposure in recent]
        self.device = task.device
        model = task.placed(task.model(0).eval())
        self._context = TermContext(
            task, codec, recent, settings, generator, model, bank, mark=mark, base=base
        )
        self.terms = make_terms(self._context)

    def for_polish(self, mates: Sequence[int]) -> Objective:
        """The same objective with the terms of polish, for a candidate that is drawn.

        Args:
            mates: places, among `exposed`, of those that share the candidate's basin.

        Raises:
            SettingsError: attacks on members are asked for, and the generator keeps none.
        """
        longer = copy.copy(self)
        context = replace(self._context, mates=mates)
        longer.terms = [*self.terms, *(t for make in POLISH_TERMS if (t := make(context)))]
        return longer

    def __call__(self, v: Tensor) -> Tensor:
        """The objective at v (P,), differentiable."""
        v, clean = v.to(self.device), Batch(*self.clean.draw())
        terms = [term for term in self.terms if term.weight != 0]
        asked = [term.inputs(v, clean).on(self.device) for term in terms]
        batches = self._run(v, clean, asked)
        loss = sum_terms(v, terms, batches)
        for term, batch in zip(terms, batches, strict=True):
            term.observe(replace(batch, logits=batch.logits.detach()))
        return loss

    @torch.no_grad()
    def best(self, decode: Callable[[Tensor], Tensor], z: Tensor) -> int:
        """Which of the latents (n, d) has the lowest objective, all on the same batch.

        Without adaptive terms: attacks on every particle would cost more than all guided steps.
        """
        if len(z) == 1:
            return 0
        clean = Batch(*self.clean.draw())
        # Terms of weight 0 draw too: a seed gives the same candidate whatever was measured before.
        terms = [term for term in self.terms if not term.adaptive]
        first = decode(z[0]).to(self.device)
        asked = [term.inputs(first, clean).on(self.device) for term in terms]
        losses = torch.zeros(len(z))
        for i, latent in enumerate(z):
            v = decode(latent).to(self.device)
            losses[i] = sum_terms(v, terms, self._run(v, clean, asked))
        return int(losses.nan_to_num(torch.inf).argmin())

    def _run(self, v: Tensor, clean: Batch, asked: Sequence[Batch]) -> list[Batch]:
        """Each batch with its logits, of one forward pass; the clean one is run once."""
        own = [batch for batch in asked if batch is not clean]
        parts = [batch.x for batch in (clean, *own)]
        logits = self._context.logits(v, torch.cat(parts)).split([len(part) for part in parts])
        shared, rest = replace(clean, logits=logits[0]), iter(logits[1:])
        return [shared if b is clean else replace(b, logits=next(rest)) for b in asked]


def sum_terms(v: Tensor, terms: Sequence[Term], batches: Sequence[Batch]) -> Tensor:
    """The weighted sum of terms at v (P,), each on its batch."""
    first, *others = (
        term.weight * term(v, batch) for term, batch in zip(terms, batches, strict=True)
    )
    return sum(others, start=first)


def guided_latent(space: LatentSpace, objective: Objective, z: Tensor) -> Tensor:
    """Adam steps on a finished latent (d,), with a weak pull to the latent prior."""
    s = objective.settings
    z = z.clone().requires_grad_(True)
    optimizer = Adam([z], s.latent_rate)
    for _ in range(s.latent_steps):
        with torch.enable_grad():
            loss = objective(space.decode(z))
            loss = loss + (s.prior * z.square().sum()).to(loss.device)
        (z.grad,) = torch.autograd.grad(loss, z)
        optimizer.step()
    return z.detach()


def polish(objective: Objective, v: Tensor) -> Tensor:
    """Adam steps in full weight space from v (P,), their rate decayed linearly to zero."""
    s = objective.settings
    v = v.to(objective.device).clone().requires_grad_(True)
    optimizer = Adam([v], s.polish_rate)
    for step in range(s.polish_steps):
        for group in optimizer.param_groups:
            group["lr"] = s.polish_rate * schedule(step, s.polish_steps, 10)
        with torch.enable_grad():
            loss = objective(v)
        (v.grad,) = torch.autograd.grad(loss, v)
        optimizer.step()
    return v.detach()


def guided_sample(
    space: LatentSpace,
    objective: Objective,
    generator: torch.Generator,
    exposed: Tensor | None = None,
    tick: Tick = lambda *_: None,
) -> Tensor:
    """Draw one candidate: guided draw, guided latent, polish. Returns v, shape (P,).

    Args:
        exposed: vectors (m, P) to condition the draw on, or None.
    """
    s = objective.settings
    total = s.reverse_steps + s.latent_steps + s.polish_steps
    z = space.draw_guided(objective, generator, exposed)
    tick(s.reverse_steps, total)
    z = guided_latent(space, objective, z)
    tick(s.reverse_steps + s.latent_steps, total)
    with torch.no_grad():
        v = space.decode(z)
        mates = space.mates(v, objective.exposed)
    v = polish(objective.for_polish(mates), v)
    tick(total, total)
    return v
