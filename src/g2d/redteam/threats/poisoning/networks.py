"""Networks made for the poisoning threat: proposals, samples and trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from g2d.attacks.pools import craft_pool
from g2d.core.types import State
from g2d.generator import Exposure, Generator
from g2d.protect.watermark.mark import Mark
from g2d.redteam.context import AttackContext
from g2d.settings import GuidanceSettings, Settings
from g2d.tasks.inference import load_model
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.layouts import layout_of
from g2d.training.loop import Batches, clean_step, train
from g2d.training.population import freeze


def proposals(
    generator: Generator, task: Task, exposures: Sequence[Exposure], context: AttackContext,
    count: int, *name: object, mark: Mark | None = None,
) -> list[State]:  # fmt: skip
    """Guided proposals, as a rotation makes them; they keep the `mark` of a marked population."""
    settings: GuidanceSettings = replace(
        context.spec.settings.guidance, conditioned=False, base_weight=0.0
    )  # of a base that another population has
    return [
        generator.to_state(
            generator.propose(
                task, exposures, settings, context.source("poisoning", *name, index), mark=mark
            )
        )
        for index in range(count)
    ]


def samples(generator: Generator, context: AttackContext, count: int, *name: object) -> list[State]:
    """Unguided samples."""
    drawn = generator.sample(count, context.source("poisoning", "sample", *name))
    return [generator.to_state(v) for v in drawn]


def trained(task: Task, context: AttackContext, steps: int, *name: object) -> State:
    """Train a network from a fresh seed on a task's train split."""
    s = context.spec.settings.population
    model = task.model(context.seed("poisoning", *name))
    return tuned(model.state_dict(), task, context, steps, s.rate, (), *name)


def tuned(
    start: State,
    task: Task,
    context: AttackContext,
    steps: int,
    rate: float,
    scope: tuple[str, ...],
    *name: object,
) -> State:
    """Train a network on from `start`; what lies outside a scope stays as it is."""
    seed = context.seed("poisoning", *name)
    model = task.placed(task.model(seed))
    model.load_state_dict(start)
    kept = freeze(model, start, layout_of(task), scope)
    batches = Batches(
        task, task.splits.train, context.spec.settings.population.batch,
        context.source("poisoning", *name),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # dropout and the like draw from it
        train(model, clean_step(task, batches), steps=steps, rate=rate)
    model.load_state_dict(kept, strict=False)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def exposed(task: Task, settings: Settings, base: State, generator: Generator) -> Exposure:
    """The base as it would be kept once live: with the attacks crafted on it."""
    s, model, splits = settings, load_model(task, base), task.splits
    guide, at = craft_pool(task, model, splits.guide, s.guidance.pool, s.guidance.pool_steps, 1)
    gate, where = craft_pool(task, model, splits.gate, s.gates.pool, s.gates.pool_steps, 2)
    clean = splits.gate.take(where)
    vector = generator.codec.encode(base)
    return Exposure(1, vector, Split(guide, splits.guide.y[at]), Split(gate, clean.y), clean)
