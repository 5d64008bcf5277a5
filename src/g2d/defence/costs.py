"""What a defence will cost: one step of each kind, measured here and now, times the settings.

Estimates, no more: optimisers' own share, looks of hardened trainings and rejected candidates are
left out, and a busy machine makes all of it look dearer.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from g2d.attacks.pools import craft_pool, pack_pool
from g2d.generator.autoencoder import Span, WeightAutoencoder
from g2d.generator.diffusion import LatentDiffusion
from g2d.generator.latent_space import DEFAULT
from g2d.protect.canaries.making import work
from g2d.protect.watermark.mark import Mark
from g2d.settings import Settings
from g2d.tasks.inference import predict
from g2d.tasks.task import Task
from g2d.training.loop import Batches
from g2d.training.population import TrainingJob, extra_recipes
from g2d.training.recipes import HardenedTraining, find_teacher
from g2d.weights.checkpoints import pack

_SECONDS = 0.08
"""What one measured step may take, about; a network that is slower learns from fewer examples."""
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Cost:
    """An estimate of one stage: `cpu` and `wall` seconds, bytes of `memory` at once and of `disk`.

    `memory` is None where the system does not tell; `cpu` where a latent space is the user's own.
    """

    stage: str
    cpu: float | None
    wall: float | None
    memory: int | None
    disk: int


@dataclass(frozen=True)
class Steps:
    """CPU seconds for each example, measured: of steps (plain, the base's and a member's with all
    that they learn from), of a forward pass, and of one gradient of an attack.
    """

    plain: float
    base: float
    member: float
    forward: float
    gradient: float


def estimate(task: Task, settings: Settings, size: int) -> tuple[Cost, ...]:
    """Estimate population, fit and one generation; `size`: values in scope."""
    steps, weights = measure(task, settings)
    memory = _peak_memory()
    return (
        _population(task, settings, steps, weights, memory),
        _fit(task, settings, steps, size, memory),
        _generation(task, settings, steps, size, weights, memory),
    )


# --- what is measured ----------------------------------------------------------------------------


def measure(task: Task, settings: Settings) -> tuple[Steps, int]:
    """Take one step of each kind that the settings ask for, on as many examples as time allows.

    Returns:
        what steps take, and the bytes that a checkpoint takes.
    """
    s, train = settings.population, task.splits.train
    model, mark = task.placed(task.model(0)), Mark.of(settings.watermark, task)

    def step(count: int) -> None:
        some = train.take(range(count))
        task.loss_of(model.train()(some.x), some.y).backward()

    one = _seconds(lambda: step(2)) / 2
    count = max(2, min(s.batch, len(train), int(_SECONDS / max(one, 1e-9))))
    plain = _seconds(lambda: step(count)) / count
    base = _seconds(lambda: _step(task, model, settings, "base", count, mark)) / count
    member = _seconds(lambda: _step(task, model, settings, "member", count, mark)) / count
    model.eval().requires_grad_(False)
    gradient = _seconds(lambda: craft_pool(task, model, train, count, 1, 0)) / count
    forward = _seconds(lambda: predict(model, train.x[:count])) / count
    weights = len(pack(model.state_dict()))
    return Steps(plain, base, member, forward, gradient), weights


def _step(
    task: Task, model: nn.Module, settings: Settings, kind: str, count: int, mark: Mark | None
) -> None:
    """One step of the base's or of a member's training, up to what the optimiser does."""
    s, train = settings.population, task.splits.train
    recipe = "base" if kind == "base" else s.recipe
    job = TrainingJob(task, kind, 0, 0, recipe, s, None, (), (), settings.harden, mark=mark)
    teacher = find_teacher(settings.harden)
    training = HardenedTraining(
        task, settings.harden, Batches(task, train, count, torch.Generator().manual_seed(0)), 1,
        seed=0, extra=extra_recipes(job, task), pools=[train.take(range(count))],
        teacher=teacher.load(task) if teacher else None, mark=mark,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        training(model.train()).backward()


def _seconds(work: Callable[[], object]) -> float:
    """CPU seconds of some work: the least of three, for the first of a kind also sets things up."""
    least = math.inf
    for _ in range(3):
        began = time.process_time()
        work()
        least = min(least, time.process_time() - began)
        if least > _SECONDS:
            break
    return least


def _peak_memory() -> int | None:
    """The most memory that this process has had, in bytes; None where no one counts it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


# --- times the settings --------------------------------------------------------------------------


def _population(
    task: Task, settings: Settings, steps: Steps, weights: int, memory: int | None
) -> Cost:
    s = settings.population
    pool = min(s.pool, len(task.splits.train))
    crafted = pool * s.pool_steps * steps.gradient
    judged = len(task.splits.gate) * steps.forward
    each = crafted + judged
    base = s.base_steps * s.batch * steps.base + each
    early = 0.0
    member = s.fork_steps * s.batch * steps.member + each
    basins = s.basins
    if s.recipe == "seeds":
        basins, member = 0, s.base_steps * s.batch * steps.base + each
    elif s.early_steps:
        early = s.early_steps * s.batch * steps.member + each
    workers = s.workers or _cores()
    at_once = min(workers, max(6, s.basins))
    rounds = math.ceil(basins / min(workers, max(1, basins))) if basins else 0
    wall = base + rounds * early + math.ceil(s.members / at_once) * member
    kept = weights + _pool_bytes(task, pool)
    return Cost(
        "population",
        base + basins * early + s.members * member,
        wall,
        None if memory is None else memory * (workers + 1),
        kept * (1 + basins + s.members),
    )


def _fit(task: Task, settings: Settings, steps: Steps, size: int, memory: int | None) -> Cost:
    fitted = _fitted(settings)
    rank = max(1, min(fitted - 1, size))
    a, d = settings.autoencoder, settings.diffusion
    disk = (rank + 2) * size * _FLOAT
    room = None if memory is None else memory + 3 * fitted * size * _FLOAT
    if settings.generator.space == "soup":
        return Cost("fit", 0.0, 0.0, room, disk)  # nothing is trained
    if settings.generator.space != DEFAULT:
        return Cost("fit", None, None, room, disk)
    lift = _seconds(lambda: _lift(rank, size)) * size / min(size, _LIFTED)
    coder, latent = _networks(rank, settings)
    c, source = torch.randn(a.batch, rank), torch.Generator().manual_seed(0)
    coding = _seconds(lambda: coder.reconstruction(c, 0.1, 0.1, source).squared_error.mean()
                      .backward())  # fmt: skip
    z = torch.randn(d.batch, latent.latent)
    diffusing = _seconds(lambda: latent.loss(z, source).backward())
    behaving = 0.0
    if a.behaviour:
        behaving = (128 * (steps.forward + steps.plain) + 3 * lift) / a.behaviour_every
    resisting = fitted * fitted * 128 * steps.forward
    cpu = a.steps * (coding + behaving) + d.steps * diffusing + resisting
    parameters = sum(p.numel() for net in (coder, latent) for p in net.parameters())
    return Cost("fit", cpu, cpu, room, disk + parameters * _FLOAT)


def _generation(
    task: Task, settings: Settings, steps: Steps, size: int, weights: int, memory: int | None
) -> Cost:
    g, gates = settings.guidance, settings.gates
    taken = g.reverse_steps + g.latent_steps + g.polish_steps
    a_step = 2 * g.batch * steps.plain  # clean examples, and as many attacks in memory
    if g.robust_weight:
        a_step += g.batch * (g.robust_steps * steps.gradient + steps.plain)
    rank = max(1, min(_fitted(settings) - 1, size))
    lift = _seconds(lambda: _lift(rank, size)) * size / min(size, _LIFTED)
    pool = min(g.pool, len(task.splits.guide)) * g.pool_steps
    gate = min(gates.pool, len(task.splits.gate))
    cpu = (
        taken * a_step
        + (g.reverse_steps + g.latent_steps + g.particles) * 2 * lift
        + g.particles * 2 * g.batch * steps.forward
        + (pool + gate * gates.pool_steps) * steps.gradient
        + (2 * len(task.splits.gate) + g.memory * gate) * steps.forward
    )
    asked = work(weights // _FLOAT, settings.canaries.count, settings.canaries.steps)
    cpu += asked.forwards * steps.forward + asked.gradients * steps.plain
    canary = task.splits.train.x[0].nbytes + _FLOAT * task.classes
    disk = weights + settings.canaries.count * canary + _pool_bytes(task, gate)
    disk += _pool_bytes(task, min(g.pool, len(task.splits.guide)))
    held = (rank + g.memory) * size * _FLOAT + asked.room
    room = None if memory is None else memory + held
    return Cost("one generation", cpu, cpu, room, disk)


def _fitted(settings: Settings) -> int:
    """How many members a generator is fitted on."""
    s = settings.population
    if s.recipe != "repelled":
        return s.members
    each = max(2, math.ceil(settings.autoencoder.newest_share * s.members / s.basins))
    return min(s.members, s.basins * each)


_LIFTED = 100_000


def _lift(rank: int, size: int) -> torch.Tensor:
    """From coordinates to parameters, for as many of them as take no time."""
    return torch.ones(rank) @ torch.ones(rank, min(size, _LIFTED))


def _networks(rank: int, settings: Settings) -> tuple[WeightAutoencoder, LatentDiffusion]:
    a = settings.autoencoder
    span = Span(torch.zeros(1), torch.zeros(rank, 1), torch.ones(rank))
    with torch.random.fork_rng(devices=[]):
        coder = WeightAutoencoder(span, a.latent, a.width, settings.population.basins)
        return coder, LatentDiffusion(coder.latent, settings.diffusion)


def _pool_bytes(task: Task, count: int) -> int:
    """What a file takes that keeps so many attacks: one is packed, and the rest is as large."""
    split = task.splits.train
    one, two = (len(pack_pool(split.x[:n], torch.arange(n), task)) for n in (1, 2))
    return one + (count - 1) * (two - one)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
