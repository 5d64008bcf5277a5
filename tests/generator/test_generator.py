from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import g2d
from g2d.defence.gates import Reference, run_gates
from g2d.errors import CheckpointError, PopulationError
from g2d.generator import Exposure, Generator
from g2d.generator.autoencoder import Span, WeightAutoencoder, mixtures
from g2d.generator.diffusion import (
    Denoiser,
    DistanceTerm,
    LatentDiffusion,
    MovingAverage,
    NoiseSchedule,
)
from g2d.generator.fitting import Members, draw_exposed
from g2d.generator.guidance import Repulsion, guided_latent
from g2d.settings import DiffusionSettings, GateSettings, GuidanceSettings
from g2d.tasks.splits import Split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def members(K: int = 12, B: int = 3, P: int = 200) -> tuple[torch.Tensor, list[int]]:
    g = generator(1)
    centres = 3 * torch.randn(B, P, generator=g)
    basins = [k % B for k in range(K)]
    return centres[basins] + 0.2 * torch.randn(K, P, generator=g), basins


# --- span and autoencoder ---


def test_span_is_exact_on_members_and_orthonormal():
    V, basins = members()
    span = Span.fit(V, basins)
    torch.testing.assert_close(span.lift(span.project(V)), V, atol=1e-4, rtol=1e-4)
    eye = torch.eye(len(span.basis))
    torch.testing.assert_close(span.basis @ span.basis.T, eye, atol=1e-4, rtol=1e-4)


def test_span_standardises_within_basins():
    V, basins = members(K=30)
    c = Span.fit(V, basins).project(V)
    within = torch.cat([c[torch.tensor(basins) == b] for b in range(3)])
    centred = torch.cat([p - p.mean(0) for p in (c[torch.tensor(basins) == b] for b in range(3))])
    assert len(within) == 30
    variance = centred.square().sum(0) / (30 - 3)
    assert int(((variance - 1).abs() < 1e-3).sum()) >= 27  # the rest separates the basins


@pytest.mark.parametrize("V", [torch.ones(1, 5), torch.ones(4, 5)])
def test_span_refuses_populations_without_directions(V):
    with pytest.raises(PopulationError):
        Span.fit(V, [0] * len(V))


def test_untrained_autoencoder_is_the_exact_linear_map():
    V, basins = members()
    coder = WeightAutoencoder(Span.fit(V, basins), 0, 16)
    coder.standardise(coder.span.project(V))
    z = coder.encode(V)
    torch.testing.assert_close(coder.decode(z), V, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(z.mean(0), torch.zeros(z.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(z.shape[1]), atol=1e-3, rtol=0)


def test_reconstruction_error_is_the_squared_error_in_weight_space():
    V, basins = members()
    coder = WeightAutoencoder(Span.fit(V, basins), 0, 16)
    c = coder.span.project(V)
    out = coder.reconstruction(c, 0.3, 0.2, generator())
    direct = (coder.span.lift(out.coordinates) - V).square().sum(-1)
    torch.testing.assert_close(out.squared_error, direct, rtol=1e-3, atol=1e-3)
    silent = coder.reconstruction(c, 0.0, 0.0, generator())
    assert float(silent.squared_error.detach().max()) < 1e-4


def test_mixtures_stay_in_their_basin_with_its_spread():
    V, basins = members(K=60)
    of = torch.tensor(basins)
    c = Span.fit(V, basins).project(V)
    drawn, which = mixtures(c, of, 6000, 1.0, generator())
    for b in range(3):
        inside, original = drawn[which == b], c[of == b]
        error = (inside.mean(0) - original.mean(0)).norm() / original.std(0).norm()
        assert float(error) < 0.1
        ratio = inside.var(0).sum() / original.var(0).sum()
        assert 0.9 < float(ratio) < 1.1


# --- diffusion: every equation against its definition ---


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


# --- guidance and gates ---


def exposure(task: g2d.Task, v: torch.Tensor, number: int = 1) -> Exposure:
    guide, gate = task.splits.guide.take(range(64)), task.splits.gate.take(range(64))
    noisy = Split((guide.x + 0.1).clamp(0, 1), guide.y)
    attacked = Split((gate.x + 0.1).clamp(0, 1), gate.y)
    return Exposure(number, v, noisy, attacked, gate)


def test_guidance_descends_its_own_objective(defence):
    generation = defence.generation()
    codec = defence.generator.codec
    v = codec.encode(generation.state)
    e = exposure(defence.task, v)
    settings = GuidanceSettings(batch=64, latent_steps=30, latent_rate=0.1, prior=0.0)
    objective = Repulsion(defence.task, codec, [e], settings, generator())
    z = defence.generator.autoencoder.encode(v)
    before = sum(
        float(objective(defence.generator.autoencoder.decode(z)).detach()) for _ in range(10)
    )
    after_z = guided_latent(defence.generator.autoencoder, objective, z)
    after = sum(float(objective(defence.generator.autoencoder.decode(after_z))) for _ in range(10))
    assert after < before


def test_guidance_reads_the_guide_split_alone(defence):
    """With every other split destroyed, the candidate is the same: no judge's data is seen."""
    splits = defence.task.splits
    ruined = {
        name: Split(torch.zeros_like(getattr(splits, name).x), getattr(splits, name).y)
        for name in ("train", "gate", "test")
    }
    other = dataclasses.replace(defence.task, splits=dataclasses.replace(splits, **ruined))
    recent = [defence.exposure(1)]
    settings = defence.settings.guidance
    first = defence.generator.propose(defence.task, recent, settings, generator(4))
    second = defence.generator.propose(other, recent, settings, generator(4))
    assert torch.equal(first, second)


def test_attacks_are_drawn_most_from_what_hurts(defence):
    v = defence.generator.codec.encode(defence.generation().state)
    exposures = [exposure(defence.task, v, 1), exposure(defence.task, v, 2)]
    objective = Repulsion(
        defence.task, defence.generator.codec, exposures, GuidanceSettings(), generator()
    )
    objective.running = torch.tensor([0.1, 3.0])
    of = torch.cat([objective._draw_attacks()[2] for _ in range(20)])
    assert float((of == 1).float().mean()) > 0.95


def reference(defence) -> Reference:
    return defence.reference


def gates_by_name(defence, state, settings=None, exposures=(), exposed=()):
    model = defence.task.model(0).eval()
    model.load_state_dict(state)
    results = run_gates(
        state, model, reference(defence), list(exposures), dict(enumerate(exposed, 1)),
        defence._judge.chain,
        settings or GateSettings(),
    )  # fmt: skip
    return {result.gate: result for result in results}


def test_the_base_passes_the_gates_but_for_distance_to_itself(defence):
    state = defence.generation().state
    strict = GateSettings(accuracy_drop=0.0, class_drop=0.0)
    results = gates_by_name(defence, state, strict, exposed=[state])
    assert results["accuracy"].passed
    assert results["class"].passed
    assert results["finite"].passed
    assert not results["distance"].passed
    assert "aligned distance" in results["distance"].reason


def test_a_permuted_copy_fails_the_distance_gate(defence):
    from g2d.weights.symmetry import permute

    state = defence.generation().state
    orders = [torch.arange(c.units).flip(0) for c in defence._judge.chain]
    moved = permute(state, defence._judge.chain, orders)
    assert not gates_by_name(defence, moved, exposed=[state])["distance"].passed


def test_every_reason_is_given(defence):
    state = {k: v.clone() for k, v in defence.generation().state.items()}
    for tensor in state.values():
        tensor.zero_()
    exposed = [defence.generation().state]
    results = gates_by_name(defence, state, exposed=exposed)
    failed = {name for name, result in results.items() if not result.passed}
    assert {"accuracy", "class"} <= failed
    assert all(results[name].reason for name in failed)
    state["7.bias"][0] = float("nan")
    assert "NaN" in gates_by_name(defence, state, exposed=exposed)["finite"].reason


def test_parameters_that_are_not_finite_fail_every_gate_that_can_tell(defence):
    base = defence.generation().state
    state = {k: torch.full_like(v, float("nan")) for k, v in base.items()}
    results = gates_by_name(defence, state, exposed=[base])
    assert not results["finite"].passed
    assert not results["distance"].passed
    assert not results["accuracy"].passed


def test_members_that_differ_out_of_scope_are_refused(digits, tiny_settings, defence):
    from g2d.weights.checkpoints import unpack

    states = [unpack(defence.vault.read(e)) for e in defence.vault.entries("member")]
    settings = dataclasses.replace(tiny_settings.autoencoder, scope=("7.*",))
    with pytest.raises(PopulationError, match="out of scope"):
        Generator.fit(digits, states, [0, 1, 0, 1], settings, tiny_settings.diffusion, seed=0)


def test_stale_gate_fails_where_attacks_still_work(defence):
    state = defence.generation().state
    e = defence.exposure(1)
    strict = GateSettings(stale_asr=0.0)
    result = gates_by_name(defence, state, strict, exposures=[e])["stale_asr"]
    assert not result.passed
    assert "generation 1" in result.reason
    assert result.value > 0.2


def test_accuracy_bound_is_wider_than_the_measured_drop():
    from g2d.defence.gates import accuracy_gate

    base = torch.ones(400, dtype=torch.bool)
    candidate = base.clone()
    candidate[:4] = False
    split = Split(torch.zeros(400, 1), torch.zeros(400, dtype=torch.long))
    result = accuracy_gate(candidate, Reference(split, base, 1), GateSettings(accuracy_drop=0.012))
    assert 0.01 < result.value < 0.02
    assert not result.passed
    assert "1.00%" in result.reason


# --- the whole generator ---


def test_generator_file_round_trip(defence):
    data = defence.generator.to_bytes()
    again = Generator.from_bytes(data)
    assert again.to_bytes() == data
    assert torch.equal(again.sample(2, generator(3)), defence.generator.sample(2, generator(3)))


def test_foreign_generator_file_is_refused(defence):
    from g2d.weights.checkpoints import pack

    with pytest.raises(CheckpointError, match="run `g2d fit` again"):
        Generator.from_bytes(pack({"x": torch.zeros(1)}, {"format": "other"}))


def test_population_of_one_is_refused(digits, tiny_settings):
    state = digits.model(0).state_dict()
    with pytest.raises(PopulationError, match="at least two"):
        Generator.fit(
            digits, [state], [0], tiny_settings.autoencoder, tiny_settings.diffusion, seed=0
        )


def test_fit_and_proposal_are_the_same_bytes_for_the_same_seed(digits, tiny_settings, defence):
    from g2d.weights.checkpoints import unpack

    states = [unpack(defence.vault.read(e)) for e in defence.vault.entries("member")]
    fitted = [
        Generator.fit(
            digits, states, [0, 1, 0, 1], tiny_settings.autoencoder, tiny_settings.diffusion, seed=3
        ).to_bytes()
        for _ in range(2)
    ]
    assert fitted[0] == fitted[1]


def test_settled_samples_lie_in_a_basin():
    V, basins = members(K=12)
    span = Span.fit(V, basins)
    coder = WeightAutoencoder(span, 0, 16, 3)
    c = span.project(V)
    coder.standardise(c)
    coder.learn_basins(c, torch.tensor(basins))
    assert int(coder.between.sum()) == 2  # three basins differ along two axes
    torch.testing.assert_close(coder.settle(coder.encode(V)), V, atol=1e-3, rtol=1e-3)
    halfway = coder.encode((V[0] + V[1]) / 2).unsqueeze(0)  # members of two basins
    settled = span.project(coder.settle(halfway)[0])
    off = (settled[coder.between] - coder.centres[:, coder.between]).norm(dim=1)
    assert float(off.min()) < 1e-3
