"""Repelling guidance: what moves a sample away from the attacks that exposed generations invite.

During the last steps of the reverse process, on the finished latent, and at the end in full weight
space, a candidate descends (DESIGN section 2)

    CE(theta_gen on clean data) + mu * CE(theta_gen on stale attacks of the last W exposures)
        + robust * CE(theta_gen on PGD attacks on theta_gen itself)

on the guide split alone. Stale attacks are crafted once, when a generation is accepted, and kept;
the last term, for populations that were trained adversarially, is crafted anew each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from g2d.attacks import pgd
from g2d.core.types import Tick
from g2d.generator.autoencoder import WeightAutoencoder
from g2d.generator.diffusion import LatentDiffusion
from g2d.settings import GuidanceSettings
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import Batches, schedule
from g2d.weights.codec import Codec


@dataclass(frozen=True)
class Exposure:
    """A generation that has been live: its number, its vector (P,), its attacks on two splits."""

    number: int
    v: Tensor
    guide: Split
    gate: Split
    gate_clean: Split


class Repulsion:
    """The guidance objective as a function of v, drawing fresh batches each call.

    Attacks are drawn from exposures in proportion to softmax(running loss / temperature): what
    still hurts is seen most. The newest exposure, the likeliest to be reused, counts
    `newest_weight` times.
    """

    def __init__(
        self,
        task: Task,
        codec: Codec,
        exposures: Sequence[Exposure],
        settings: GuidanceSettings,
        generator: torch.Generator,
    ) -> None:
        self.task, self.codec, self.settings = task, codec, settings
        self.generator = generator
        self.model: nn.Module = task.model(0).eval()
        self.clean = Batches(task, task.splits.guide, settings.batch, generator)
        recent = list(exposures)[-settings.memory :] if settings.memory else []
        self.sizes = torch.tensor([len(e.guide) for e in recent])
        self.starts = self.sizes.cumsum(0) - self.sizes
        if recent:
            self.attacks = torch.cat([e.guide.x for e in recent])
            self.labels = torch.cat([e.guide.y for e in recent])
        # Every exposure starts as one that hurts, so that each is looked at early.
        self.running = torch.full((len(recent),), 2.0)

    def __call__(self, v: Tensor) -> Tensor:
        """The objective at v (P,), differentiable."""
        s = self.settings
        x, y = self.clean.draw()
        parts = [x]
        repelled = len(self.running) > 0 and s.mu > 0
        if repelled:
            attacks, labels, of = self._draw_attacks()
            parts.append(attacks)
        if s.robust_weight > 0:
            parts.append(self._attack(v, x, y))
        logits = list(self._logits(v, torch.cat(parts)).split([len(part) for part in parts]))
        loss = self.task.loss(logits.pop(0), y)
        if repelled:
            stale = nn.functional.cross_entropy(logits.pop(0), labels, reduction="none")
            self._remember(stale.detach(), of)
            loss = loss + s.mu * stale.mean()
        if s.robust_weight > 0:
            loss = loss + s.robust_weight * self.task.loss(logits.pop(0), y)
        return loss

    def _attack(self, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """PGD on the candidate as it is: inputs of the shape of x."""
        task, s = self.task, self.settings
        tensors = self.codec.tensors(v.detach())
        return pgd(
            lambda inputs: functional_call(self.model, tensors, (inputs,)), x, y,
            eps=s.robust_eps or task.eps, steps=s.robust_steps, generator=self.generator,
            bounds=task.bounds, batch=len(x),
        )  # fmt: skip

    @torch.no_grad()
    def best(self, autoencoder: WeightAutoencoder, z: Tensor) -> int:
        """Which of the latents (n, d) has the lowest objective, all on the same batch.

        Without the robust term: attacks on every particle would cost more than all guided steps.
        """
        if len(z) == 1:
            return 0
        x, y = self.clean.draw()
        losses = torch.zeros(len(z))
        attacks, labels, _ = self._draw_attacks() if len(self.running) else (x[:0], y[:0], None)
        for i, latent in enumerate(z):
            logits = self._logits(autoencoder.decode(latent), torch.cat([x, attacks]))
            losses[i] = self.task.loss(logits[: len(x)], y)
            if len(attacks):
                stale = nn.functional.cross_entropy(logits[len(x) :], labels)
                losses[i] += self.settings.mu * stale
        return int(losses.nan_to_num(torch.inf).argmin())

    def _logits(self, v: Tensor, x: Tensor) -> Tensor:
        return functional_call(self.model, self.codec.tensors(v), (x,))

    def _draw_attacks(self) -> tuple[Tensor, Tensor, Tensor]:
        share = torch.softmax(self.running / self.settings.temperature, 0)
        share[-1] *= self.settings.newest_weight
        count = self.settings.batch
        of = torch.multinomial(share, count, replacement=True, generator=self.generator)
        rank = torch.rand(count, generator=self.generator)
        at = self.starts[of] + (rank * self.sizes[of]).long()
        return self.attacks[at], self.labels[at], of

    def _remember(self, losses: Tensor, of: Tensor) -> None:
        count = torch.bincount(of, minlength=len(self.running))
        total = torch.zeros_like(self.running).index_add_(0, of, losses.float())
        seen = count > 0
        self.running[seen] = 0.8 * self.running[seen] + 0.2 * total[seen] / count[seen]


def guided_sample(
    autoencoder: WeightAutoencoder,
    diffusion: LatentDiffusion,
    objective: Repulsion,
    generator: torch.Generator,
    condition: Tensor | None = None,
    tick: Tick = lambda *_: None,
) -> Tensor:
    """Draw one candidate: guided reverse process, guided latent, polish. Returns v, shape (P,)."""
    s = objective.settings
    total = s.reverse_steps + s.latent_steps + s.polish_steps
    z = guided_reverse(autoencoder, diffusion, objective, generator, condition)
    tick(s.reverse_steps, total)
    z = guided_latent(autoencoder, objective, z)
    tick(s.reverse_steps + s.latent_steps, total)
    with torch.no_grad():
        v = autoencoder.decode(z)
    v = polish(objective, v)
    tick(total, total)
    return v


def guided_reverse(
    autoencoder: WeightAutoencoder,
    diffusion: LatentDiffusion,
    objective: Repulsion,
    generator: torch.Generator,
    condition: Tensor | None = None,
) -> Tensor:
    """The reverse process, its last `reverse_steps` steps guided through z_0's estimate.

    `particles` latents run the unguided part together; the one whose estimate has the lowest
    objective goes on (32 cost a tenth of a second and saved about a point of stale ASR). A guided
    step moves z_t against the gradient of objective(f_dec(z_0(z_t))), its length
    fixed at latent_rate * sqrt(d).
    """
    s = objective.settings
    steps = list(diffusion.reverse())
    free = max(0, len(steps) - s.reverse_steps)
    z_t, z_0 = diffusion.start(s.particles, generator), None
    crowd = None if condition is None else condition.expand(s.particles, -1)
    for t, before in steps[:free]:
        with torch.no_grad():
            z_0 = diffusion.estimate(z_t, t, crowd)
            z_t = diffusion.step(z_t, z_0, t, before, generator)
    best = objective.best(autoencoder, z_t if z_0 is None else z_0)
    z_t = z_t[best : best + 1]
    for t, before in steps[free:]:
        with torch.enable_grad():
            z_in = z_t.detach().requires_grad_(True)
            z_0 = diffusion.estimate(z_in, t, condition)
            loss = objective(autoencoder.decode(z_0[0]))
        (gradient,) = torch.autograd.grad(loss, z_in)
        width = s.latent_rate * z_0.shape[-1] ** 0.5
        z_0 = z_0.detach() - width * gradient / gradient.norm().clamp_min(1e-12)
        z_t = diffusion.step(z_t, z_0, t, before, generator)
    return z_t[0].detach()


def guided_latent(autoencoder: WeightAutoencoder, objective: Repulsion, z: Tensor) -> Tensor:
    """Adam steps on a finished latent (d,), with a weak pull to the latent prior."""
    s = objective.settings
    z = z.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([z], s.latent_rate)
    for _ in range(s.latent_steps):
        with torch.enable_grad():
            loss = objective(autoencoder.decode(z)) + s.prior * z.square().sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        optimizer.step()
    return z.detach()


def polish(objective: Repulsion, v: Tensor) -> Tensor:
    """Adam steps in full weight space from v (P,), their rate decayed linearly to zero."""
    s = objective.settings
    v = v.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([v], s.polish_rate)
    for step in range(s.polish_steps):
        for group in optimizer.param_groups:
            group["lr"] = s.polish_rate * schedule(step, s.polish_steps, 10)
        with torch.enable_grad():
            loss = objective(v)
        (v.grad,) = torch.autograd.grad(loss, v)
        optimizer.step()
    return v.detach()
