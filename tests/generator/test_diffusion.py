"""Diffusion: every equation against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from drawing import generator
from g2d.generator.diffusion import (
    Denoiser,
    DistanceTerm,
    LatentDiffusion,
    MovingAverage,
    NoiseSchedule,
)
from g2d.generator.fitting import Members, draw_exposed
from g2d.settings import DiffusionSettings


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_schedule(shape):
    noise = NoiseSchedule.make(1000, shape)
    assert bool((noise.beta > 0).all())
    assert bool((noise.beta < 1).all())
    torch.testing.assert_close(noise.alpha_bar, torch.cumprod(1 - noise.beta, 0), rtol=1e-3, atol=0)
    assert float(noise.alpha_bar[-1]) < 1e-3


def test_forward_process_equals_the_chain_of_single_steps():
    noise = NoiseSchedule.make(50, "linear")
    g, n = generator(), 40_000
    x = torch.full((n, 1), 2.0)
    for t in range(30):
        beta = noise.beta[t]
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(x.shape, generator=g)
    at_once = noise.diffuse(
        torch.full((n, 1), 2.0), torch.full((n,), 29), torch.randn(n, 1, generator=g)
    )
    assert abs(float(x.mean() - at_once.mean())) < 0.03
    assert abs(float(x.std() - at_once.std())) < 0.02


def test_estimate_inverts_diffuse():
    noise = NoiseSchedule.make(100, "cosine")
    z_0, epsilon = (
        torch.randn(7, 3, generator=generator()),
        torch.randn(7, 3, generator=generator(1)),
    )
    t = torch.arange(7) * 10
    z_t = noise.diffuse(z_0, t, epsilon)
    torch.testing.assert_close(noise.estimate(z_t, t, epsilon), z_0, atol=1e-4, rtol=1e-4)


def test_posterior_is_bayes_rule():
    noise = NoiseSchedule.make(20, "linear")
    t, z_0, z_t = 12, 0.7, -0.4
    grid = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    before, beta = float(noise.alpha_bar[t - 1]), float(noise.beta[t])
    log_prior = -((grid - math.sqrt(before) * z_0) ** 2) / (2 * (1 - before))
    log_step = -((z_t - math.sqrt(1 - beta) * grid) ** 2) / (2 * beta)
    p = torch.softmax(log_prior + log_step, 0)
    mean = float((p * grid).sum())
    variance = float((p * (grid - mean) ** 2).sum())
    ours, spread = noise.posterior(torch.tensor([z_0]), torch.tensor([z_t]), t)
    assert abs(float(ours) - mean) < 1e-4
    assert abs(spread - variance) < 1e-4


@pytest.mark.slow
def test_diffusion_keeps_modes_that_a_gaussian_merges():
    """Six far modes: samples must land on them, where a Gaussian's samples lie between them."""
    g = generator(3)
    modes = 2.0 * torch.nn.functional.normalize(torch.randn(6, 5, generator=g), dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LatentDiffusion(5, DiffusionSettings(width=64, depth=2, sampler_steps=25))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(2000):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 2000)
        of = torch.randint(6, (128,), generator=g)
        loss = model.loss(modes[of] + 0.1 * torch.randn(128, 5, generator=g), g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    samples = model.sample(300, g)
    near = torch.cdist(samples, modes).amin(1)
    data = modes[torch.randint(6, (5000,), generator=g)]
    cholesky = torch.linalg.cholesky(torch.cov(data.T) + 0.01 * torch.eye(5))
    gaussian = data.mean(0) + torch.randn(300, 5, generator=g) @ cholesky.T
    assert float((near < 0.6).float().mean()) > 0.95
    assert float((torch.cdist(gaussian, modes).amin(1) < 0.6).float().mean()) < 0.3
    assert len(torch.cdist(samples, modes).argmin(1).unique()) == 6


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_sampling_is_reproducible(sampler):
    model = LatentDiffusion(4, DiffusionSettings(width=16, depth=1, timesteps=50, sampler=sampler))
    assert torch.equal(model.sample(3, generator(7)), model.sample(3, generator(7)))
    assert not torch.equal(model.sample(3, generator(7)), model.sample(3, generator(8)))


def test_perfect_denoiser_recovers_a_point_by_both_samplers():
    """With epsilon_theta exact for a single point, both reverse processes must end on it."""
    point = torch.tensor([[0.5, -1.0, 2.0]])
    for sampler in ("ddim", "ddpm"):
        settings = DiffusionSettings(width=8, depth=1, timesteps=100, sampler=sampler)
        model = LatentDiffusion(3, settings)
        noise = model.noise

        def exact(z, t, condition=None, noise=noise):
            alpha_bar = noise.alpha_bar[t].unsqueeze(-1)
            return (z - alpha_bar.sqrt() * point) / (1 - alpha_bar).sqrt()

        model.denoiser.forward = exact
        torch.testing.assert_close(
            model.sample(4, generator()), point.expand(4, -1), atol=0.02, rtol=0
        )


def test_lambda_zero_is_the_plain_model_and_the_sign_increases_distance():
    model = LatentDiffusion(3, DiffusionSettings(width=8, depth=1, timesteps=20))
    z = torch.randn(64, 3, generator=generator())
    original = torch.tensor([[1.0, 2.0, -1.0]])
    plain = model.loss(z, generator(5))
    silent = DistanceTerm(0.0, 1.0, lambda q: q, original)
    assert torch.equal(model.loss(z, generator(5), distance=silent), plain)
    active = DistanceTerm(0.1, 1.0, lambda q: q, original)
    closer = model.loss(z, generator(5), distance=active)
    assert float(closer.detach()) < float(plain.detach())
    # Descending the term moves theta_gen away from theta_orig, never towards it.
    theta = (original + 0.1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(active(theta, torch.ones(1)), theta)
    moved = (theta - gradient).detach()
    assert float((moved - original).abs().sum()) > float((theta.detach() - original).abs().sum())


def test_distance_term_has_the_margin_the_weight_and_the_nearest_reference():
    references = torch.tensor([[1.0, 1.0], [10.0, 10.0]])
    term = DistanceTerm(2.0, 0.5, lambda q: q, references)
    at = torch.tensor([[1.0, 1.2]])  # relative L1 to the first is 0.1, to the second 0.89
    torch.testing.assert_close(term(at, torch.tensor([0.25])), torch.tensor(-2.0 * 0.25 * 0.1))
    far = torch.tensor([[1.0, 100.0]])
    torch.testing.assert_close(term(far, torch.ones(1)), torch.tensor(-2.0 * 0.5))


def test_embedding_of_exposed_sets_ignores_order_and_absentees():
    torch.manual_seed(0)
    denoiser = Denoiser(4, 16, 1)
    torch.nn.init.normal_(denoiser.null_embedding)
    z = torch.randn(5, 4)
    exposed = torch.tensor([[0, 3, 4], [3, 0, 1], [2, 2, 2]])
    mask = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    rows = denoiser.embed_members(z, exposed, mask)
    torch.testing.assert_close(rows[0], rows[1])
    torch.testing.assert_close(rows[0], denoiser.embed(z[[0, 3]])[0])
    torch.testing.assert_close(rows[2], denoiser.null_embedding.detach(), check_dtype=False)


def test_moving_average_follows():
    layer = torch.nn.Linear(1, 1)
    average = MovingAverage(layer, 0.9)
    torch.nn.init.constant_(layer.weight, 5.0)
    for _ in range(200):
        average.update()
    assert abs(float(average.average.weight) - 5.0) < 1e-2


def test_targets_of_amortised_repulsion_resist_their_exposed_set():
    resistance = torch.full((6, 6), 0.9)
    resistance[:, 2] = 0.05  # member 2 resists everyone
    data = Members(torch.zeros(6, 2), torch.zeros(6, dtype=torch.long), resistance)
    exposed, mask, target = draw_exposed(data, 200, generator())
    assert exposed.shape == (200, 8)
    assert int(mask.sum(1).min()) >= 1
    assert float((target == 2).float().mean()) > 0.99
