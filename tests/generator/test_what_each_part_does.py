"""What each part of the generator is there for, on a small vault: it does that, and can be seen."""

from __future__ import annotations

from dataclasses import replace

import torch

from drawing import generator
from g2d.attacks import pgd
from g2d.generator import Generator
from g2d.generator.guidance import Objective, guided_sample
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.weights.checkpoints import unpack


def population(defence):
    """States of the members, their basins, and the base."""
    entries = defence.vault.entries("member")
    states = [unpack(defence.vault.read(entry)) for entry in entries]
    base = unpack(defence.vault.read(defence.vault.entry("base")))
    return states, [int(entry.info["basin"]) for entry in entries], base


def fitted(defence, resistance=None, **diffusion):
    states, basins, base = population(defence)
    s = defence.settings.override(**{f"diffusion__{k}": v for k, v in diffusion.items()})
    return Generator.fit(
        defence.task, states, basins, s.autoencoder, s.diffusion, seed=0, base=base,
        resistance=resistance,
    )  # fmt: skip


def test_a_fit_with_the_distance_regulariser_draws_farther_from_the_base_as_accurately(defence):
    task, base = defence.task, population(defence)[2]
    distances, accuracies = [], []
    for weight in (0.0, 30.0):
        # The margin lies above what is drawn anyway: 1.2 times the base's own L1 norm.
        made = fitted(defence, distance_weight=weight, margin=10.0, steps=300)
        origin = made.codec.encode(base)
        with torch.no_grad():  # as guidance takes them up; `settle` would put basins right again
            drawn = made.space.decode(made.space.draw(16, generator(1)))
        distances.append(float((drawn - origin).abs().sum(1).mean() / origin.abs().sum()))
        models = [load_model(task, made.to_state(v)) for v in drawn]
        accuracies.append(sum(accuracy(m, task.splits.gate) for m in models) / len(models))
    assert distances[1] > 1.03 * distances[0]
    assert accuracies[1] > accuracies[0] - 0.02


def test_the_condition_moves_a_draw_away_from_what_was_exposed(defence):
    states, basins, _ = population(defence)
    # Members resist what was crafted in the other basin, and nothing of their own.
    own = torch.tensor(basins)
    resistance = (own[:, None] == own[None, :]).float() * 0.8 + 0.1
    made = fitted(defence, resistance=resistance, steps=600)
    vectors = torch.stack([made.codec.encode(state).float() for state in states])
    shares = []
    for exposed in (vectors[own == 0], vectors[own == 1]):
        drawn = made.sample(64, generator(2), exposed)
        assert not torch.equal(drawn, made.sample(64, generator(2)))
        to_first = torch.cdist(drawn, vectors[own == 0].mean(0, keepdim=True))
        to_other = torch.cdist(drawn, vectors[own == 1].mean(0, keepdim=True))
        shares.append(float((to_first < to_other).float().mean()))
    assert shares[0] < shares[1] - 0.2  # basin 0 is drawn less once it was exposed


def test_robust_guidance_withstands_attacks_on_itself_better_than_an_unguided_draw(defence):
    task, made = defence.task, defence.generator
    settings = replace(
        defence.settings.guidance, robust_weight=1.0, robust_steps=3, reverse_steps=0,
        latent_steps=0, polish_steps=60, polish_rate=0.01, particles=1,
    )  # fmt: skip
    split = task.splits.gate

    def robust(v):
        model = load_model(task, made.to_state(v))
        attacked = pgd(
            model, split.x, split.y, eps=task.eps, steps=10, generator=generator(3),
            bounds=task.bounds, batch=len(split),
        )  # fmt: skip
        return float((predict(model, attacked).argmax(1) == split.y).float().mean())

    rates = []
    for one in (replace(settings, polish_steps=0), settings):
        objective = Objective(task, made.codec, [], one, generator(4))
        rates.append(robust(guided_sample(made.space, objective, generator(5))))
    assert rates[1] > rates[0] + 0.05
