"""Fitting the two networks of a generator: the autoencoder, then the latent diffusion model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from g2d.core.adam import Adam
from g2d.core.types import Tick
from g2d.errors import GenerationError
from g2d.generator.autoencoder import WeightAutoencoder, mixtures
from g2d.generator.diffusion import DistanceTerm, LatentDiffusion, MovingAverage
from g2d.settings import AutoencoderSettings, DiffusionSettings
from g2d.tasks.task import Task
from g2d.training.loop import Batches, schedule
from g2d.weights.codec import Codec


@dataclass(frozen=True)
class Members:
    """A population as the fits see it: coordinates (K, r), basins (K,), and who resists whom.

    `resistance[i, j]` is the error of member j on attacks crafted on member i, or None if unknown;
    `base` (P,) the original parameters.
    """

    coordinates: Tensor
    basins: Tensor
    resistance: Tensor | None = None
    base: Tensor | None = None


def fit_autoencoder(
    autoencoder: WeightAutoencoder,
    members: Members,
    codec: Codec,
    task: Task,
    settings: AutoencoderSettings,
    generator: torch.Generator,
    tick: Tick,
) -> None:
    """Train encoder and decoder in place: squared error in R^P plus the behavioural term.

    Raises:
        GenerationError: the loss is no longer finite.
    """
    s = settings
    parameters = [*autoencoder.encoder.parameters(), *autoencoder.decoder.parameters()]
    optimizer = Adam(parameters, s.rate, fused=True)
    variance = float(autoencoder.spread.square().sum())
    model = task.placed(task.model(0).eval())
    batches = Batches(task, task.splits.guiding, 128, generator)
    autoencoder.standardise(members.coordinates)
    for step in range(s.steps):
        c = draw(members, s.batch, s.mixture, generator)
        out = autoencoder.reconstruction(c, s.sigma, s.rho, generator)
        loss = out.squared_error.mean() / variance
        if s.behaviour and step % s.behaviour_every == 0:
            v, v_decoded = (autoencoder.span.lift(p[0]) for p in (c, out.coordinates))
            x, _ = batches.draw()
            kl = behavioural(model, codec, v, v_decoded, x)
            loss = loss + s.behaviour * kl.to(loss.device)
        _descend(optimizer, loss, s.rate * schedule(step, s.steps, 50))
        if step % 50 == 49 or step + 1 == s.steps:
            _check(loss, "autoencoder")
            tick(step + 1, s.steps)
    autoencoder.standardise(draw(members, 4096, s.mixture, generator))


def behavioural(model: nn.Module, codec: Codec, v: Tensor, v_decoded: Tensor, x: Tensor) -> Tensor:
    """KL between the original's and the decoded network's predictions on a batch x (n, ...).

    Structure alone is not enough (arXiv 2503.17138): small squared errors can ruin the function.
    """
    with torch.no_grad():
        original = functional_call(model, codec.tensors(v), (x,)).log_softmax(1)
    decoded = functional_call(model, codec.tensors(v_decoded), (x,)).log_softmax(1)
    return F.kl_div(decoded, original, reduction="batchmean", log_target=True)


def fit_diffusion(
    diffusion: LatentDiffusion,
    autoencoder: WeightAutoencoder,
    members: Members,
    codec_settings: AutoencoderSettings,
    settings: DiffusionSettings,
    generator: torch.Generator,
    tick: Tick,
) -> None:
    """Train the denoiser in place; its moving average is what stays.

    Half of each batch is conditioned on exposed sets if the members' resistance is known.

    Raises:
        GenerationError: the loss is no longer finite.
    """
    s = settings
    optimizer = Adam(diffusion.denoiser.parameters(), s.rate, fused=True)
    average = MovingAverage(diffusion.denoiser, s.ema)
    with torch.no_grad():
        sample = autoencoder.encode_coordinates(
            draw(members, 4096, codec_settings.mixture, generator)
        )
        diffusion.bound.copy_(1.25 * sample.abs().amax(0))
        latents = autoencoder.encode_coordinates(members.coordinates)
    distance, means = distance_term(autoencoder, members, settings), basin_means(members)
    for step in range(s.steps):
        c = draw(members, s.batch, codec_settings.mixture, generator)
        condition = None
        if members.resistance is not None:
            exposed, mask, target = draw_exposed(members, s.batch, generator)
            half = s.batch // 2
            mask[:half] = False
            near = 0.3 * (c - members.coordinates[target]) + members.coordinates[target]
            same = members.basins[target] == nearest_basin(means, c)
            pulled = torch.where(same[:, None], near, members.coordinates[target])
            c = torch.cat([c[:half], pulled[half:]])
            condition = diffusion.denoiser.embed_members(latents, exposed, mask)
        with torch.no_grad():
            noise = codec_settings.sigma * torch.randn(c.shape, generator=generator)
            z_0 = autoencoder.encode_coordinates(c + noise)
        loss = diffusion.loss(z_0, generator, condition, distance)
        _descend(optimizer, loss, s.rate * schedule(step, s.steps, 100))
        average.update()
        if step % 50 == 49 or step + 1 == s.steps:
            _check(loss, "diffusion model")
            tick(step + 1, s.steps)
    diffusion.denoiser.load_state_dict(average.average.state_dict())


def draw(members: Members, size: int, width: float, generator: torch.Generator) -> Tensor:
    """Coordinates (size, r): members themselves (width 0), or their basins' mixtures."""
    if width > 0:
        return mixtures(members.coordinates, members.basins, size, width, generator)[0]
    index = torch.randint(len(members.coordinates), (size,), generator=generator)
    return members.coordinates[index]


def basin_means(members: Members) -> tuple[Tensor, Tensor]:
    """The basins there are, (B,), and the mean coordinates of each, (B, r)."""
    known = members.basins.unique()
    return known, torch.stack([members.coordinates[members.basins == b].mean(0) for b in known])


def nearest_basin(means: tuple[Tensor, Tensor], c: Tensor) -> Tensor:
    """The basin (n,) of `basin_means` whose mean is nearest to each of the coordinates (n, r)."""
    known, centres = means
    return known[torch.cdist(c, centres).argmin(1)]


def draw_exposed(
    members: Members, size: int, generator: torch.Generator, most: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw training pairs of amortised repulsion: exposed subsets, and a member that resists each.

    Returns:
        exposed (size, most) member indices, mask (size, most) of those that count, and target
        (size,): the member whose worst error under the subset's attacks is smallest, softly.
    """
    assert members.resistance is not None, "pairs need the members' pairwise resistance"
    K = len(members.coordinates)
    exposed = torch.randint(K, (size, most), generator=generator)
    count = torch.randint(1, most + 1, (size, 1), generator=generator)
    mask = torch.arange(most)[None, :] < count
    worst = torch.where(mask[:, :, None], members.resistance[exposed], 0.0).amax(1)
    noise = (
        -torch.rand(worst.shape, generator=generator).clamp_min(1e-9).log().clamp_min(1e-9).log()
    )
    return exposed, mask, (-worst / 0.05 + noise).argmax(1)


def distance_term(
    autoencoder: WeightAutoencoder, members: Members, settings: DiffusionSettings
) -> DistanceTerm | None:
    """The distance regulariser, or None where lambda is 0 (the plain model)."""
    if settings.distance_weight == 0:
        return None
    with torch.no_grad():
        if settings.reference == "base" and members.base is not None:
            references = members.base.unsqueeze(0).to(autoencoder.mean.device)
        else:
            references = autoencoder.span.lift(members.coordinates)
    return DistanceTerm(settings.distance_weight, settings.margin, autoencoder.decode, references)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _check(loss: Tensor, what: str) -> None:
    if not bool(torch.isfinite(loss)):
        raise GenerationError(f"the {what} diverged while fitting; lower its rate in the settings")
