"""The latent space that G2D proposes from: a weight autoencoder and a latent diffusion model."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from g2d.core.devices import CPU
from g2d.generator.autoencoder import Span, WeightAutoencoder
from g2d.generator.diffusion import LatentDiffusion
from g2d.generator.fitting import Members, fit_autoencoder, fit_diffusion
from g2d.generator.guidance import Objective
from g2d.generator.latent_space import FitPlan, LatentSpace, Population, longest_rested
from g2d.settings import AutoencoderSettings, DiffusionSettings, build, stored
from g2d.weights.codec import Codec

_ON_DISK = {
    "denoiser.in_proj.weight": "denoiser.inlet.weight",
    "denoiser.in_proj.bias": "denoiser.inlet.bias",
    "denoiser.out_proj.weight": "denoiser.outlet.weight",
    "denoiser.out_proj.bias": "denoiser.outlet.bias",
    "denoiser.null_embedding": "denoiser.nobody",
}
"""Names of tensors as files of this format have had them from the beginning, by those in Python."""
_IN_PYTHON = {old: new for new, old in _ON_DISK.items()}


@dataclass(frozen=True, eq=False)
class DiffusionSpace(LatentSpace):
    """Latents of an autoencoder around the members' span, drawn by diffusion."""

    codec: Codec
    autoencoder: WeightAutoencoder
    diffusion: LatentDiffusion
    settings: AutoencoderSettings

    @classmethod
    def fit(cls, population: Population, plan: FitPlan) -> Self:
        """Fit autoencoder and diffusion model; see `LatentSpace.fit`."""
        p, a, d = population, plan.autoencoder, plan.diffusion
        generator = torch.Generator().manual_seed(plan.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            span = Span.fit(p.vectors, p.basins.tolist())
            coder = WeightAutoencoder(span, a.latent, a.width, len(p.basins.unique()))
            latent = LatentDiffusion(coder.latent, d)
        with torch.no_grad():
            members = Members(span.project(p.vectors), p.basins, p.resistance, p.base)
            coder.learn_basins(members.coordinates, members.basins)
        coder.place(p.task.device)
        fit_autoencoder(
            coder, members, p.codec, p.task, a, generator,
            lambda done, total: plan.progress("autoencoder", done, total),
        )  # fmt: skip
        fit_diffusion(
            latent, coder, members, a, d, generator,
            lambda done, total: plan.progress("diffusion", done, total),
        )  # fmt: skip
        coder.place(CPU)
        return cls(p.codec, coder.requires_grad_(False), latent.requires_grad_(False), a)

    def placed(self, device: str) -> DiffusionSpace:
        """The same space, whose vectors are on a device."""
        coder = copy.copy(self.autoencoder)  # the frame is large: nothing else is copied
        coder._buffers = dict(coder._buffers)
        coder.place(device)
        return replace(self, autoencoder=coder)

    def refit(
        self, vectors: Tensor, basins: Sequence[int], mixture: float, seed: int,
        generator: torch.Generator,
    ) -> DiffusionSpace:  # fmt: skip
        """The same latents with another diffusion model, fitted on mixtures of another width.

        Args:
            vectors: members (K, P). basins: the basin of each. seed: of its first weights.
            generator: draws everything else.
        """
        with torch.no_grad():
            coordinates = self.autoencoder.span.project(vectors)
        members = Members(coordinates, torch.as_tensor(list(basins)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            latent = LatentDiffusion(self.autoencoder.latent, self.diffusion.settings)
        settings = replace(self.settings, mixture=mixture)
        fit_diffusion(
            latent, self.autoencoder, members, settings, latent.settings, generator,
            lambda *_: None,
        )  # fmt: skip
        return replace(self, diffusion=latent.requires_grad_(False))

    # --- drawing ---------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator, exposed: Tensor | None = None) -> Tensor:
        """Draw latents (count, d) by one diffusion inference, conditioned if `exposed` is given."""
        condition = self._condition(exposed)
        crowd = None if condition is None else condition.expand(count, -1)
        return self.diffusion.sample(count, generator, crowd)

    def draw_guided(
        self, objective: Objective, generator: torch.Generator, exposed: Tensor | None = None
    ) -> Tensor:
        """The reverse process, its last `reverse_steps` steps guided through z_0's estimate.

        `particles` latents run the unguided part together; the one whose estimate has the lowest
        objective goes on (32 cost a tenth of a second and saved about a point of stale ASR). A
        guided step moves z_t against the gradient of objective(f_dec(z_0(z_t))), its length fixed
        at latent_rate * sqrt(d).
        """
        s, diffusion, condition = objective.settings, self.diffusion, self._condition(exposed)
        steps = list(diffusion.reverse())
        free = max(0, len(steps) - s.reverse_steps)
        z_t, z_0 = diffusion.start(s.particles, generator), None
        crowd = None if condition is None else condition.expand(s.particles, -1)
        for t, before in steps[:free]:
            with torch.no_grad():
                z_0 = diffusion.estimate(z_t, t, crowd)
                z_t = diffusion.step(z_t, z_0, t, before, generator)
        ahead = z_t if z_0 is None else z_0
        if s.resting:
            rested = self._rested(ahead, objective.exposed)
            z_t, ahead = z_t[rested], ahead[rested]
        best = objective.best(self.decode, ahead)
        z_t = z_t[best : best + 1]
        for t, before in steps[free:]:
            with torch.enable_grad():
                z_in = z_t.detach().requires_grad_(True)
                z_0 = diffusion.estimate(z_in, t, condition)
                loss = objective(self.decode(z_0[0]))
            (gradient,) = torch.autograd.grad(loss, z_in)
            width = s.latent_rate * z_0.shape[-1] ** 0.5
            z_0 = z_0.detach() - width * gradient / gradient.norm().clamp_min(1e-12)
            z_t = diffusion.step(z_t, z_0, t, before, generator)
        return z_t[0].detach()

    @torch.no_grad()
    def _rested(self, z: Tensor, exposed: Sequence[Tensor]) -> Tensor:
        """Which latents (n, d) lie in the basin, of those they lie in, that has rested longest."""
        own = self.autoencoder.nearest_basin(self.autoencoder.decode_coordinates(z))
        return longest_rested(own, [self._basin(v) for v in exposed])

    @torch.no_grad()
    def mates(self, v: Tensor, exposed: Sequence[Tensor]) -> list[int]:
        """Places of the exposed vectors (P,) whose nearest basin is that of v (P,)."""
        own = self._basin(v)
        return [place for place, other in enumerate(exposed) if self._basin(other) == own]

    def _basin(self, v: Tensor) -> int:
        c = self.autoencoder.span.project(v.float()).unsqueeze(0)
        return int(self.autoencoder.nearest_basin(c))

    @torch.no_grad()
    def _condition(self, exposed: Tensor | None) -> Tensor | None:
        """Embed an exposed set (m, P), of which the last eight count, as (1, width)."""
        if exposed is None:
            return None
        return self.diffusion.denoiser.embed(self.encode(exposed[-8:].float()))

    # --- between vectors and latents -------------------------------------------------------------

    def encode(self, v: Tensor) -> Tensor:
        """f_enc without noise: latents (…, d) of vectors (…, P)."""
        return self.autoencoder.encode(v)

    def decode(self, z: Tensor) -> Tensor:
        """f_dec without noise: vectors (…, P) of latents (…, d)."""
        return self.autoencoder.decode(z)

    def settle(self, z: Tensor) -> Tensor:
        """Vectors (n, P) of latents (n, d), each in its nearest basin."""
        return self.autoencoder.settle(z)

    # --- on disk ---------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Both networks' tensors."""
        coder, latent = self.autoencoder.state_dict(), self.diffusion.state_dict()
        named = {f"autoencoder.{name}": tensor for name, tensor in coder.items()}
        return named | {f"diffusion.{_ON_DISK.get(n, n)}": t for n, t in latent.items()}

    def describe(self) -> dict[str, str]:
        """The settings that both networks were built with."""
        return {
            "autoencoder": json.dumps(stored(self.settings)),
            "diffusion": json.dumps(stored(self.diffusion.settings)),
        }

    @classmethod
    def restore(
        cls, codec: Codec, tensors: Mapping[str, Tensor], described: Mapping[str, str]
    ) -> Self:
        """Both networks again, ready for use."""
        parts: dict[str, dict[str, Tensor]] = {"autoencoder": {}, "diffusion": {}}
        for name, tensor in tensors.items():
            part, _, own = name.partition(".")
            parts[part][_IN_PYTHON.get(own, own)] = tensor
        tables = {name: json.loads(described[name]) for name in ("autoencoder", "diffusion")}
        settings = build(AutoencoderSettings, tables["autoencoder"], "generator", stored=True)
        drawn = build(DiffusionSettings, tables["diffusion"], "generator", stored=True)
        state = parts["autoencoder"]
        span = Span(state["mean"], state["basis"], state["spread"])
        coder = WeightAutoencoder(span, len(state["shift"]), settings.width, len(state["centres"]))
        coder.load_state_dict(state)
        latent = LatentDiffusion(coder.latent, drawn)
        latent.load_state_dict(parts["diffusion"])
        return cls(codec, coder.requires_grad_(False), latent.requires_grad_(False), settings)
