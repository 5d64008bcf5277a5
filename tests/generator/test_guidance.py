from __future__ import annotations

import dataclasses

import torch

from drawing import exposure, generator
from g2d.generator.guidance import Objective, guided_latent
from g2d.settings import GuidanceSettings
from g2d.tasks.splits import Split


def test_guidance_descends_its_own_objective(defence):
    generation = defence.generation()
    codec = defence.generator.codec
    v = codec.encode(generation.state)
    e = exposure(defence.task, v)
    settings = GuidanceSettings(batch=64, latent_steps=30, latent_rate=0.1, prior=0.0)
    objective = Objective(defence.task, codec, [e], settings, generator())
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
    objective = Objective(
        defence.task, defence.generator.codec, exposures, GuidanceSettings(), generator()
    )
    objective.running = torch.tensor([0.1, 3.0])
    of = torch.cat([objective._draw_attacks()[2] for _ in range(20)])
    assert float((of == 1).float().mean()) > 0.95
