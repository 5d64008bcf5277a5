"""One training of a population: a pure function of its job, which any engine may run.

Which trainings there are, and from which starts, is in `population`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from g2d.attacks.pools import craft_pool, pack_pool, unpack_pool
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.protect.privacy.releases import LEARNED
from g2d.protect.watermark.mark import Mark
from g2d.settings import HardenSettings, PopulationSettings, PrivacySettings
from g2d.settings.privacy import PUBLIC
from g2d.tasks.attack import NONE, OWN
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.tasks.placing import on_cpu
from g2d.tasks.source import TaskSource, resolve
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.charging import is_whole, reads_people
from g2d.training.layouts import layout_of
from g2d.training.loop import Batches, NewAndOld
from g2d.training.recipes import (
    HardenedTraining,
    Private,
    PrivatePlan,
    Teacher,
    fgsm_light,
    find,
    stale,
    watermark,
)
from g2d.training.recipes.private_entropy import secret_generator
from g2d.training.recipes.private_forks import KeepBase, without_people
from g2d.training.recipes.private_public import learn_public
from g2d.training.recipes.recipe import ChangeStep, Recipe
from g2d.training.recipes.watermark import NAME as MARK
from g2d.weights.checkpoints import pack, unpack
from g2d.weights.layout import Layout

MARKING = "marking"
"""The kind of a job that teaches a member the watermark which it was trained without."""

REFRESHING = "refreshing"
"""The kind of a job that teaches a network what was added to its task, beside what it knew."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that one training needs; picklable."""

    task: TaskSource
    kind: str  # "base", "early", "member", MARKING or REFRESHING
    index: int
    basin: int
    recipe: str
    settings: PopulationSettings
    start: bytes | None
    pools: tuple[bytes, ...]
    scope: tuple[str, ...] = ()
    harden: HardenSettings = field(default_factory=HardenSettings)
    teacher: Teacher | None = None
    stays: bytes | None = None  # what a training from fresh weights takes from the base as it is
    mark: Mark | None = None
    attacks: bytes | None = None  # a pool to keep as it is; None: one is crafted
    privacy: PrivacySettings | None = None  # whether records are learned privately, and how
    released: tuple[bytes, ...] = ()  # private networks that are paid for, for attacks of records
    base: bytes | None = None  # the private base, whose answers a fork on public data learns


@dataclass(frozen=True)
class Trained:
    """A finished checkpoint: weights and attacks as safetensors bytes, and what was measured."""

    weights: bytes
    attacks: bytes
    info: Mapping[str, Any]


def run_job(job: TrainingJob) -> Trained:
    """Train one checkpoint and craft its attacks; runs in a worker, a pure function of its job."""
    began = time.process_time()
    task, s = resolve(job.task), job.settings
    private = _is_private(job)
    if private:  # gradients of single records, and their noise, are the CPU's
        task = on_cpu(task)
    elif job.privacy is not None:
        task = without_people(task)  # nothing that follows could read them
    seed = seed_of(s.seed, job.kind, job.index)
    model = task.placed(task.model(seed))
    outside: dict[str, Tensor] = {}
    if job.start is not None:
        start = unpack(job.start)
        model.load_state_dict(start)
        outside = freeze(model, start, layout_of(task), job.scope)
    elif job.stays is not None:
        model.load_state_dict(unpack(job.stays), strict=False)
    steps, rate = _length(job)
    training = HardenedTraining(
        task, job.harden,
        _batches(job, task, torch.Generator().manual_seed(seed)), steps,
        seed=seed, begun=job.start is not None, extra=extra_recipes(job, task),
        pools=[unpack_pool(pool, task.splits.pooled) for pool in job.pools],
        teacher=job.teacher.load(task) if job.teacher else None, mark=job.mark,
        private=_private(job, task),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout and the like draw from torch's own generator
        if job.privacy is not None and is_whole(job.kind, job.recipe):
            learn_public(task, model, job.privacy.public_steps, s, seed)
        if private:  # and must not fall as anybody could tell
            torch.set_rng_state(secret_generator().get_state())
        training.run(model, rate)
    model.load_state_dict(outside, strict=False)  # batch norm's statistics move without a gradient
    model.requires_grad_(False)
    attacks, pool = _attacks(job, task, model, seed)
    info = {
        "index": job.index,
        "basin": job.basin,
        "recipe": job.recipe,
        "accuracy": accuracy(model, task.splits.gate),
        "examples": len(task.splits.gate),
    }
    if len(attacks):
        right = predict(model, attacks.x).argmax(1) == attacks.y
        info["robust"] = float(right.double().mean())
    if job.privacy is not None and not private:
        info[LEARNED] = PUBLIC
    if job.mark is not None:
        info["watermark"] = job.mark.share(model)
    if training.monitor is not None:
        info["checks"] = [asdict(found) for found in training.monitor.checks]
    if training.switched is not None:
        info["switched_to_pgd"] = training.switched
    info["cpu_seconds"] = round(time.process_time() - began, 2)
    return Trained(pack(model.state_dict()), pool, info)


def _attacks(
    job: TrainingJob, task: Task, model: torch.nn.Module, seed: int
) -> tuple[Split, bytes]:
    """The attacks that are kept with a checkpoint, and their file."""
    split, s = task.splits.pooled, job.settings
    if job.attacks is not None:
        return unpack_pool(job.attacks, split), job.attacks
    attacks, index = craft_pool(task, model, split, s.pool, s.pool_steps, seed)
    return Split(attacks, split.y[index]), pack_pool(attacks, index, task)


def _batches(job: TrainingJob, task: Task, generator: torch.Generator) -> Batches:
    """What a training draws from: where it is to learn what was added, at least half of that."""
    train, size = task.splits.train, job.settings.batch
    if job.kind == REFRESHING:
        return NewAndOld(task, train, size, generator, task.splits.added("train"))
    return Batches(task, train, size, generator)


def _length(job: TrainingJob) -> tuple[int, float]:
    """How many steps a training takes, and its peak rate."""
    s, p = job.settings, job.privacy
    if p is not None and _is_private(job) and not (job.kind == "early" and s.early_steps == 0):
        whole = is_whole(job.kind, job.recipe)
        return (p.steps, p.rate) if whole else (p.fork_steps, s.fork_rate)
    if job.kind in (MARKING, REFRESHING):
        return s.fork_steps, s.fork_rate
    if job.kind == "base" or job.recipe == "seeds":
        return s.base_steps, s.rate
    return (s.early_steps, s.rate) if job.kind == "early" else (s.fork_steps, s.fork_rate)


def _is_private(job: TrainingJob) -> bool:
    """Whether people's records are learned privately; a public fork of a private vault has none."""
    return job.privacy is not None and reads_people(job.kind, job.recipe, job.privacy)


def _private(job: TrainingJob, task: Task) -> Private | None:
    """What makes a training private; None: nothing does."""
    p = job.privacy
    if p is None or not _is_private(job):
        return None
    adversarial = any(find(name).adversarial for name in job.harden.recipe)
    repelled = job.recipe == "repelled"
    return Private(
        PrivatePlan(
            p,
            p.noise if is_whole(job.kind, job.recipe) else p.fork_noise,
            adversarial,
            job.settings.light_eps * task.eps if repelled else 0.0,
            [load_model(task, unpack(weights)) for weights in job.released],
        )
    )


def extra_recipes(job: TrainingJob, task: Task) -> tuple[Recipe | ChangeStep, ...]:
    """What a training learns beside the hardening: what repels it, and the watermark last."""
    unnamed = job.mark is not None and MARK not in job.harden.recipe
    return (*_of_base(job, task), *_repelled(job, task), *((watermark,) if unnamed else ()))


def _of_base(job: TrainingJob, task: Task) -> tuple[Recipe, ...]:
    """What a fork on public data learns of the private base."""
    if job.base is None or job.privacy is None or _is_private(job):
        return ()
    return (KeepBase(load_model(task, unpack(job.base)), job.privacy.soft),)


def _repelled(job: TrainingJob, task: Task) -> tuple[ChangeStep, ...]:
    """What a repelled training learns: others' attacks, and a light FGSM.

    The light FGSM would only repeat adversarial training at a smaller budget; an attack of the
    task's own has no lighter form.
    """
    if job.recipe != "repelled" or task.attack_kind == NONE or _is_private(job):
        return ()  # of a private one each record brings its own attacks
    eps = job.settings.light_eps * task.eps
    if (
        eps == 0
        or task.attack_kind == OWN
        or any(find(name).adversarial for name in job.harden.recipe)
    ):
        return (stale,)
    return (stale, partial(fgsm_light, eps))


def freeze(
    model: torch.nn.Module, start: State, layout: Layout, scope: tuple[str, ...]
) -> dict[str, Tensor]:
    """Freeze what lies outside a scope; return those tensors. An empty scope freezes nothing.

    Members must agree outside the scope: the generator takes those tensors from one of them.
    """
    if not scope:
        return {}
    inside = layout.in_scope(scope)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in inside)
    return {name: tensor for name, tensor in start.items() if name not in inside}
