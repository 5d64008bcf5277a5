"""The latent diffusion model: forward process, denoiser, reverse process, training loss.

Symbols follow DDPM (Ho et al. 2020, arXiv 2006.11239) and docs/method.md: latents z_0 in R^d,
beta_t, alpha_bar_t, epsilon (the noise), epsilon_theta (the denoiser). The denoiser may be
conditioned on the latents of the exposed set (amortised repulsion, docs/method.md).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from g2d.settings import DiffusionSettings


@dataclass(frozen=True)
class NoiseSchedule:
    """beta_t and alpha_bar_t for t = 1 … T, stored at index t - 1; shapes (T,)."""

    beta: Tensor
    alpha_bar: Tensor

    @classmethod
    def make(cls, timesteps: int, shape: str) -> NoiseSchedule:
        """Build the linear schedule of Ho et al. or the cosine one of Nichol & Dhariwal (2021)."""
        if shape == "linear":
            scale = 1000 / timesteps
            low, high = 1e-4 * scale, min(0.02 * scale, 0.999)
            beta = torch.linspace(low, high, timesteps, dtype=torch.float64)
        else:
            t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
            f = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
            beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        return cls(beta.float(), torch.cumprod(1 - beta, 0).float())

    def __len__(self) -> int:
        return len(self.beta)

    def diffuse(self, z_0: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """q(z_t | z_0): z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) epsilon; t in 0…T-1."""
        alpha_bar = self.alpha_bar[t].unsqueeze(-1)
        return alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * epsilon

    def estimate(self, z_t: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """z_0 estimated: (z_t - sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_bar_t)."""
        alpha_bar = self.alpha_bar[t].unsqueeze(-1)
        return (z_t - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()

    def posterior(self, z_0: Tensor, z_t: Tensor, t: int) -> tuple[Tensor, float]:
        """q(z_{t-1} | z_t, z_0): its mean and variance (Ho et al., equations 6 and 7)."""
        beta, alpha_bar = float(self.beta[t]), float(self.alpha_bar[t])
        before = float(self.alpha_bar[t - 1]) if t > 0 else 1.0
        mean = (
            math.sqrt(before) * beta / (1 - alpha_bar) * z_0
            + math.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar) * z_t
        )
        return mean, beta * (1 - before) / (1 - alpha_bar)


class Denoiser(nn.Module):
    """epsilon_theta(z_t, t, exposed): residual blocks modulated by time and by the exposed set.

    The exposed set enters as the mean over members of an embedding of each latent (Deep Sets), so
    its order does not matter; an absent set is a learnt constant (classifier-free guidance).
    """

    def __init__(self, latent: int, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.in_proj = nn.Linear(latent, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.member = nn.Sequential(nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, width))
        self.null_embedding = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
            )
            for _ in range(depth)
        )
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.out_proj = nn.Linear(width, latent)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, z_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the noise in z_t (n, d) at times t (n,); `condition` (n, width) from `embed`."""
        if condition is None:
            condition = self.null_embedding.expand(len(z_t), -1)
        context = self.time(_sinusoid(t, self.width)) + condition
        h = self.in_proj(z_t)
        for block, film in zip(self.blocks, self.films, strict=True):
            gain, offset = film(context).chunk(2, -1)
            h = h + block(h * (1 + gain) + offset)
        return self.out_proj(h)

    def embed(self, exposed: Tensor) -> Tensor:
        """Embed one exposed set (m, d) as (1, width)."""
        return self.member(exposed).mean(0, keepdim=True)

    def embed_members(self, members: Tensor, exposed: Tensor, mask: Tensor) -> Tensor:
        """Embed n exposed subsets of the members (K, d) as (n, width).

        `exposed` (n, m) indexes members, `mask` (n, m) marks which count; a row without any is the
        absent set. Each member is embedded once, whatever n is.
        """
        weight = mask.float()
        share = torch.zeros(len(exposed), len(members)).scatter_add_(1, exposed, weight)
        some = share @ self.member(members) / weight.sum(1, keepdim=True).clamp_min(1)
        return torch.where(mask.any(1, keepdim=True), some, self.null_embedding)


def _sinusoid(t: Tensor, width: int) -> Tensor:
    half = width // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32) / half)
    angles = t.float().unsqueeze(-1) * rates
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, width - 2 * half))


@dataclass(frozen=True)
class DistanceTerm:
    """The distance regulariser (docs/method.md), with the sign that *increases* distance.

        - lambda * alpha_bar_t * min( ||theta_gen - theta_orig||_1 / ||theta_orig||_1, margin )

    `references` (m, P): the original, or the exposed set (then the nearest counts).
    """

    weight: float
    margin: float
    decode: Callable[[Tensor], Tensor]
    references: Tensor

    def __call__(self, z_0: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return the term for estimated latents (n, d) at alpha_bar (n,): a scalar to add."""
        theta = self.decode(z_0)
        relative = torch.stack(
            [(theta - r).abs().sum(-1) / r.abs().sum() for r in self.references]
        ).amin(0)
        bounded = relative.clamp(max=self.margin).to(alpha_bar.device)
        return -self.weight * (alpha_bar * bounded).mean()


class LatentDiffusion(nn.Module):
    """DDPM over standardised latents, with an exponential moving average of its weights."""

    bound: Tensor

    def __init__(self, latent: int, settings: DiffusionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.latent = latent
        self.noise = NoiseSchedule.make(settings.timesteps, settings.schedule)
        self.denoiser = Denoiser(latent, settings.width, settings.depth)
        # Estimates of z_0 are clipped to the range of the training latents: at t near T the
        # division by sqrt(alpha_bar_t) would otherwise blow a small error up.
        self.register_buffer("bound", torch.full((latent,), 4.0))

    def loss(
        self,
        z_0: Tensor,
        generator: torch.Generator,
        condition: Tensor | None = None,
        distance: DistanceTerm | None = None,
    ) -> Tensor:
        """||epsilon - epsilon_theta(z_t, t)||^2 over random t, plus the distance term if given."""
        t = torch.randint(len(self.noise), (len(z_0),), generator=generator)
        epsilon = torch.randn(z_0.shape, generator=generator)
        z_t = self.noise.diffuse(z_0, t, epsilon)
        predicted = self.denoiser(z_t, t, condition)
        loss = (epsilon - predicted).square().mean()
        if distance is not None:
            estimate = self.clip(self.noise.estimate(z_t, t, predicted))
            loss = loss + distance(estimate, self.noise.alpha_bar[t])
        return loss

    def clip(self, z_0: Tensor) -> Tensor:
        """Clip estimated latents to the range seen in training."""
        return torch.minimum(torch.maximum(z_0, -self.bound), self.bound)

    def epsilon(self, z_t: Tensor, t: int, condition: Tensor | None, strength: float) -> Tensor:
        """epsilon_theta with classifier-free guidance: plain + strength (conditioned - plain)."""
        times = torch.full((len(z_t),), t)
        if condition is None:
            return self.denoiser(z_t, times)
        conditioned = self.denoiser(z_t, times, condition)
        if strength == 1.0:
            return conditioned
        plain = self.denoiser(z_t, times)
        return plain + strength * (conditioned - plain)

    def estimate(
        self, z_t: Tensor, t: int, condition: Tensor | None = None, strength: float = 1.0
    ) -> Tensor:
        """The clipped estimate of z_0 from z_t (n, d) at time t."""
        epsilon = self.epsilon(z_t, t, condition, strength)
        return self.clip(self.noise.estimate(z_t, torch.tensor(t), epsilon))

    def start(self, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """z_T ~ N(0, temperature^2 I), shape (count, d)."""
        return temperature * torch.randn(count, self.latent, generator=generator)

    def times(self) -> list[int]:
        """Times that the reverse process visits, falling: all for DDPM, a subset for DDIM."""
        T = len(self.noise)
        if self.settings.sampler == "ddpm":
            return list(range(T - 1, -1, -1))
        count = min(self.settings.sampler_steps, T)
        return sorted({round(i * (T - 1) / max(1, count - 1)) for i in range(count)}, reverse=True)

    def step(self, z_t: Tensor, z_0: Tensor, t: int, before: int, g: torch.Generator) -> Tensor:
        """One step of the reverse process from t to `before` (-1: done), given the estimate z_0.

        DDPM draws from the posterior; DDIM (Song et al. 2021, equation 12, eta = 0) is
        deterministic.
        """
        if before < 0:
            return z_0
        if self.settings.sampler == "ddpm":
            mean, variance = self.noise.posterior(z_0, z_t, t)
            return mean + math.sqrt(variance) * torch.randn(z_t.shape, generator=g)
        alpha_bar = float(self.noise.alpha_bar[t])
        target = float(self.noise.alpha_bar[before])
        epsilon = (z_t - math.sqrt(alpha_bar) * z_0) / math.sqrt(1 - alpha_bar)
        return math.sqrt(target) * z_0 + math.sqrt(1 - target) * epsilon

    def reverse(self) -> Iterator[tuple[int, int]]:
        """Pairs (t, next t) of the reverse process; the last next is -1."""
        times = self.times()
        yield from zip(times, [*times[1:], -1], strict=True)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        generator: torch.Generator,
        condition: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Draw latents (count, d) without guidance by data: one diffusion inference."""
        z_t = self.start(count, generator)
        for t, before in self.reverse():
            z_0 = self.estimate(z_t, t, condition, strength)
            z_t = self.step(z_t, z_0, t, before, generator)
        return z_t


class MovingAverage:
    """Exponential moving average of a module's parameters (EMA)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.average = copy.deepcopy(module).requires_grad_(False)
        # Walking through the modules each time took longer than the averaging.
        self._means, self._now = list(self.average.parameters()), list(module.parameters())

    def update(self) -> None:
        """Move the average towards the module; early steps count more (no bias to the start)."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(self._means, self._now, self.steps)
