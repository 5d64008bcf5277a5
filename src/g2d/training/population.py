"""The population of checkpoints: fork, diversify, resume; or adopt a zoo that the user has.

A member is trained by a pure function of its job, so that any engine may run it and the same seed
gives the same bytes whatever the number of workers. Members are made in waves: a `repelled` member
trains on attacks crafted on random members of *earlier* waves, and begins where its basin's last
one ended (the trunk), so that a population deepens like self-play; docs/benchmarks/generation.md
shows how accuracy rises and stale ASR falls from wave to wave.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from g2d.attacks.pools import craft_pool, pack_pool, unpack_pool
from g2d.core.engine import Engine
from g2d.core.seeds import seed_of
from g2d.core.types import Progress, State
from g2d.errors import SettingsError, VaultError
from g2d.settings import HardenSettings, PopulationSettings, stored
from g2d.tasks.attack import NONE, OWN
from g2d.tasks.inference import accuracy, predict
from g2d.tasks.source import TaskSource, resolve
from g2d.tasks.task import Task
from g2d.training.layouts import layout_of
from g2d.training.loop import Batches
from g2d.training.recipes import (
    HardenedTraining,
    Teacher,
    check,
    fgsm_light,
    find,
    stale,
    try_out,
)
from g2d.training.recipes.distil import keep_teacher
from g2d.training.recipes.recipe import ChangeStep
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import pack, unpack
from g2d.weights.layout import Layout

_WAVE = 6  # members a wave where there are fewer basins: enough to keep several workers busy


@dataclass(frozen=True)
class TrainingJob:
    """Everything that one training needs; picklable."""

    task: TaskSource
    kind: str  # "base", "early" or "member"
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
    seed = seed_of(s.seed, job.kind, job.index)
    model = task.model(seed)
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
        Batches(task, task.splits.train, s.batch, torch.Generator().manual_seed(seed)), steps,
        seed=seed, begun=job.start is not None, extra=extra_recipes(job, task),
        pools=[unpack_pool(pool, task.splits.train) for pool in job.pools],
        teacher=job.teacher.load(task) if job.teacher else None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout and the like draw from torch's own generator
        training.run(model, rate)
    model.load_state_dict(outside, strict=False)  # batch norm's statistics move without a gradient
    model.requires_grad_(False)
    attacks, index = craft_pool(task, model, task.splits.train, s.pool, s.pool_steps, seed)
    info = {
        "index": job.index,
        "basin": job.basin,
        "recipe": job.recipe,
        "accuracy": accuracy(model, task.splits.gate),
        "examples": len(task.splits.gate),
    }
    if len(attacks):
        right = predict(model, attacks).argmax(1) == task.splits.train.y[index]
        info["robust"] = float(right.double().mean())
    if training.monitor is not None:
        info["checks"] = [asdict(found) for found in training.monitor.checks]
    if training.switched is not None:
        info["switched_to_pgd"] = training.switched
    info["cpu_seconds"] = round(time.process_time() - began, 2)
    return Trained(pack(model.state_dict()), pack_pool(attacks, index, task), info)


def _length(job: TrainingJob) -> tuple[int, float]:
    """How many steps a training takes, and its peak rate."""
    s = job.settings
    if job.kind == "base" or job.recipe == "seeds":
        return s.base_steps, s.rate
    return (s.early_steps, s.rate) if job.kind == "early" else (s.fork_steps, s.fork_rate)


def extra_recipes(job: TrainingJob, task: Task) -> tuple[ChangeStep, ...]:
    """What a repelled training learns beside the hardening: others' attacks, and a light FGSM.

    The light FGSM would only repeat adversarial training at a smaller budget; an attack of the
    task's own has no lighter form.
    """
    if job.recipe != "repelled" or task.attack_kind == NONE:
        return ()
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


def stays_of(task: Task, base: bytes) -> bytes | None:
    """What a task's networks share bit by bit, of its base's weights; None if there is nothing."""
    kept = layout_of(task).stays()
    return pack({n: t for n, t in unpack(base).items() if n in kept}) if kept else None


def build_population(
    source: TaskSource,
    vault: Vault,
    settings: PopulationSettings,
    engine: Engine,
    progress: Progress = lambda *_: None,
    scope: tuple[str, ...] = (),
    note: Mapping[str, Any] | None = None,
    harden: HardenSettings | None = None,
    made: Callable[[Entry], None] = lambda _: None,
) -> list[Entry]:
    """Make, or finish, the population of a vault; members that are complete are kept.

    With a `scope` (name patterns), everything outside it stays as it is in the base, and basins
    begin at the base too. `note` is kept with the base. `harden` applies to all that is trained.
    `made` is called with each checkpoint that has been kept.

    A base that was given (`adopt_base`) is where basins begin, one after the other: each early
    checkpoint is trained on the attacks of the base and of the basins before it.

    Raises:
        SettingsError: a recipe of `harden` is unknown, or its budget does not fit the data.
        PopulationError: training diverged or a worker died.
        VaultError: the vault holds members that other settings made, or cannot be written.
    """
    harden = harden or HardenSettings()
    layout_of(resolve(source)).in_scope(scope)
    check(resolve(source), harden)
    teacher = keep_teacher(vault, harden)
    try_out(resolve(source), harden, teacher)
    builder = _Builder(
        source, vault, settings, engine, progress, scope, note or {}, harden, teacher, made
    )
    builder.check_settings()
    builder.base_and_basins()
    for first in range(0, settings.members, builder.wave):
        builder.members(range(first, min(first + builder.wave, settings.members)))
    return vault.entries("member")[: settings.members]


@dataclass(frozen=True)
class _Builder:
    """One run that makes, or finishes, a population: which trainings are due, from which starts."""

    source: TaskSource
    vault: Vault
    settings: PopulationSettings
    engine: Engine
    progress: Progress
    scope: tuple[str, ...]
    note: Mapping[str, Any]
    harden: HardenSettings
    teacher: Teacher | None
    made: Callable[[Entry], None]

    @property
    def wave(self) -> int:
        """How many members are trained at once, on attacks of those before them."""
        return max(self.settings.basins, _WAVE)

    @cached_property
    def fingerprint(self) -> str:
        """Kept with every checkpoint: another run goes on only where it is the same."""
        return fingerprint(self.settings, self.harden, self.teacher)

    @cached_property
    def stays(self) -> bytes | None:
        """The base's frozen parameters and constant buffers: seeds would draw others."""
        return stays_of(resolve(self.source), self._base("weights"))

    def check_settings(self) -> None:
        """Refuse settings that make no population, or another than the vault has begun."""
        s = self.settings
        if s.early_steps == 0 and s.basins > 1 and s.recipe != "seeds":
            raise SettingsError(
                f"[population] early_steps = 0 makes the base the start of all {s.basins} basins; "
                "set basins = 1, or give early checkpoints steps of their own"
            )
        for kind in ("base", "member"):
            for entry in self.vault.entries(kind)[:1]:
                if entry.info.get("settings") != self.fingerprint:
                    raise VaultError(
                        f"{self.vault.path} holds a population made with other settings "
                        "(recipe, seed or training length); use a new folder, or the old settings"
                    )

    def base_and_basins(self) -> None:
        if self.vault.entry("base") is None:
            self._run("base", [0], 1)
        if self.settings.recipe == "seeds":
            return
        have = {entry.index for entry in self.vault.entries("early")}
        missing = sorted(set(range(self.settings.basins)) - have)
        # From a given base each one flees those before it, so that they part: one at a time.
        for indices in [[k] for k in missing] if self.given else [missing]:
            self._run("early", indices, self.settings.basins)

    def members(self, indices: range) -> None:
        have = {entry.index for entry in self.vault.entries("member")}
        self._run("member", [k for k in indices if k not in have], self.settings.members)

    def _job(self, kind: str, index: int, basin: int) -> TrainingJob:
        recipe = "base" if kind == "base" else self.settings.recipe
        pools: tuple[bytes, ...] = ()
        if kind == "early" and self.given:
            recipe, pools = "repelled", self._earlier_basins(index)
        elif recipe == "repelled":
            pools = self._pools(index) if kind == "member" else (self._base("attacks"),)
        return TrainingJob(
            self.source, kind, index, basin, recipe, self.settings,
            self._start(kind, index, basin), pools, self.scope, self.harden, self.teacher,
            None if kind == "base" else self.stays,
        )  # fmt: skip

    def _start(self, kind: str, index: int, basin: int) -> bytes | None:
        """Where a training begins; None: at fresh weights."""
        if kind == "member" and self.settings.recipe != "seeds":
            return self._fork(index, basin)
        if kind == "base":
            return None
        # Outside its scope a checkpoint is the base; without steps of its own it is the base.
        early_is_base = kind == "early" and (self.settings.early_steps == 0 or self.given)
        return self._base("weights") if self.scope or early_is_base else None

    @property
    def given(self) -> bool:
        """Whether the base was given, so that basins begin at it; else at fresh weights."""
        base = self.vault.entry("base")
        return base is not None and bool(base.info.get("starts"))

    def _earlier_basins(self, index: int) -> tuple[bytes, ...]:
        """The base's attacks, and those of the basins before this one, newest first."""
        earlier = [entry for entry in self.vault.entries("early") if entry.index < index]
        kept = earlier[::-1][: self.settings.sources - 1]
        return self._base("attacks"), *(self.vault.read(entry, "attacks") for entry in kept)

    def _base(self, name: str) -> bytes:
        base = self.vault.entry("base")
        assert base is not None, "the base is made first"
        return self.vault.read(base, name)

    def _fork(self, index: int, basin: int) -> bytes:
        """Where a fork begins: its basin's early checkpoint, or with `trunk` its latest member."""
        start = self.vault.entry("early", basin)
        before = [k for k in range(index - index % self.wave) if k % self.settings.basins == basin]
        if before and self.settings.trunk and self.settings.recipe == "repelled":
            start = self.vault.entry("member", before[-1])
        assert start is not None, "basins and earlier waves are made first"
        return self.vault.read(start)

    def _pools(self, index: int) -> tuple[bytes, ...]:
        """Attacks of random members of the last three waves; the base's always among them."""
        earlier = index - index % self.wave
        recent = [
            *self.vault.entries("early"),
            *(e for e in self.vault.entries("member") if e.index < earlier),
        ][-3 * self.wave :]
        generator = torch.Generator().manual_seed(seed_of(self.settings.seed, "sources", index))
        chosen = torch.randperm(len(recent), generator=generator)[: self.settings.sources - 1]
        entries = [self.vault.entry("base"), *(recent[int(i)] for i in chosen)]
        return tuple(self.vault.read(entry, "attacks") for entry in entries if entry is not None)

    def _run(self, kind: str, indices: Sequence[int], total: int) -> None:
        stage = {"base": "base", "early": "early checkpoints", "member": "population"}[kind]
        done = len(self.vault.entries(kind))
        self.progress(stage, done, total)
        # Made one by one as workers get free: a job carries megabytes of attacks.
        jobs = (self._job(kind, k, k % self.settings.basins) for k in indices)
        for position, trained in self.engine.run(run_job, jobs):
            files = {"weights": trained.weights, "attacks": trained.attacks}
            info = dict(trained.info) | {"settings": self.fingerprint}
            if kind == "base":
                info |= self.note
            self.made(self.vault.put(kind, indices[position], files, info))
            done += 1
            self.progress(stage, done, total)


def fingerprint(
    settings: PopulationSettings, harden: HardenSettings, teacher: Teacher | None
) -> str:
    """What members depend on; the number of members and of workers may change later."""
    fields = {k: v for k, v in stored(settings).items() if k not in ("members", "workers")}
    if harden.stale != HardenSettings().stale:
        fields["stale"] = harden.stale
    if harden.recipe:  # else vaults from before there was hardening could not go on
        fields["hardening"] = {k: v for k, v in stored(harden).items() if k != "teacher"}
    if teacher is not None:
        fields["teacher"] = hashlib.sha256(teacher.weights).hexdigest()
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
