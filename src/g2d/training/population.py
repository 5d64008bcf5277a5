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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from g2d.core.engine import Engine
from g2d.core.seeds import seed_of
from g2d.core.types import Progress
from g2d.errors import SettingsError, VaultError
from g2d.protect.watermark.mark import Mark
from g2d.settings import HardenSettings, PopulationSettings, PrivacySettings, stored
from g2d.settings.privacy import PUBLIC
from g2d.tasks.source import TaskSource, resolve
from g2d.tasks.task import Task
from g2d.training.charging import Charge, Charged, free, reads_people
from g2d.training.jobs import Trained, TrainingJob, extra_recipes, freeze, run_job
from g2d.training.layouts import layout_of
from g2d.training.recipes import (
    Teacher,
    check,
    check_mark,
    check_private_training,
    try_out,
)
from g2d.training.recipes.distil import keep_teacher
from g2d.vault.basins import GROWN
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import pack, unpack

__all__ = [
    "Trained",
    "TrainingJob",
    "attack_sources",
    "build_population",
    "extra_recipes",
    "fingerprint",
    "freeze",
    "run_job",
    "stays_of",
]

_OF_TRAINING = (
    "records", "batch", "noise", "fork_noise", "clip", "steps", "fork_steps", "against",
    "against_steps", "unit", "rate", "public_steps",
)  # fmt: skip

_WAVE = 6  # members a wave where there are fewer basins: enough to keep several workers busy


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
    mark: Mark | None = None,
    charge: Charge = free,
    privacy: PrivacySettings | None = None,
) -> list[Entry]:
    """Make, or finish, the population of a vault; members that are complete are kept.

    With a `scope` (name patterns), everything outside it stays as it is in the base, and basins
    begin at the base too. `note` is kept with the base. `harden` applies to all that is trained.
    `made` is called with each checkpoint that has been kept. What is trained carries the `mark`.
    `charge` is called with each job before it is handed to the engine; what it returns is kept.
    With `privacy` all is trained privately, and charged: one base, and short forks of it whose
    records learn attacks on networks that are there already; or the base alone, and forks that are
    given public data (`[privacy] forks`).

    A base that was given (`adopt_base`) is where basins begin, one after the other: each early
    checkpoint is trained on the attacks of the base and of the basins before it.

    Raises:
        SettingsError: a recipe of `harden` is unknown, its budget does not fit the data, or they
            cannot be trained privately.
        PopulationError: training diverged or a worker died.
        PrivacyError: the budget does not cover the next training; those before it are kept.
        VaultError: the vault holds members that other settings made, or cannot be written.
    """
    harden = harden or HardenSettings()
    layout_of(resolve(source)).in_scope(scope)
    check(resolve(source), harden)
    check_mark(harden, mark)
    teacher = keep_teacher(vault, harden)
    if privacy is None:
        try_out(resolve(source), harden, teacher, mark)
    else:
        assert charge is not free, "private training is paid for"
        marked = mark is not None
        check_private_training(resolve(source), privacy, settings, harden, marked)
    builder = _Builder(
        source, vault, settings, engine, progress, scope, note or {}, harden, teacher, made,
        mark, charge, privacy,
    )  # fmt: skip
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
    mark: Mark | None = None
    charge: Charge = free
    privacy: PrivacySettings | None = None

    @property
    def wave(self) -> int:
        """How many members are trained at once, on attacks of those before them."""
        return wave_of(self.settings)

    @cached_property
    def fingerprint(self) -> str:
        """Kept with every checkpoint: another run goes on only where it is the same."""
        return fingerprint(self.settings, self.harden, self.teacher, self.mark, self.privacy)

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
                known = entry.info.get("settings")
                if self.mark and known == fingerprint(self.settings, self.harden, self.teacher):
                    raise VaultError(
                        f"{self.vault.path} holds a population that was trained without its "
                        "watermark: `g2d watermark add` marks it once it is complete (finish it "
                        "with [watermark] key = '')"
                    )
                if known != self.fingerprint:
                    raise VaultError(
                        f"{self.vault.path} holds a population made with other settings "
                        "(recipe, seed, training length, watermark): use a new folder, or those"
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
        released: tuple[bytes, ...] = ()
        privacy, base = self.privacy, None
        if privacy is not None and reads_people(kind, recipe, privacy):
            # Pools are of other inputs: no record may learn those.
            if kind == "member" and recipe == "repelled":
                released = attack_sources(self.vault, self.settings, index, "weights")
        elif kind == "early" and self.given:
            recipe, pools = "repelled", self._earlier_basins(index)
        elif recipe == "repelled":
            pools = (
                attack_sources(self.vault, self.settings, index)
                if kind == "member"
                else (self._base("attacks"),)
            )
        if privacy is not None and not reads_people(kind, recipe, privacy):
            base = self._base("weights")
        return TrainingJob(
            self.source, kind, index, basin, recipe, self.settings,
            self._start(kind, index, basin), pools, self.scope, self.harden, self.teacher,
            None if kind == "base" else self.stays, self.mark,
            privacy=privacy, released=released, base=base,
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
        return self.vault.read(fork_start(self.vault, self.settings, index, basin))

    def _run(self, kind: str, indices: Sequence[int], total: int) -> None:
        stage = {"base": "base", "early": "early checkpoints", "member": "population"}[kind]
        done = len(self.vault.entries(kind))
        self.progress(stage, done, total)
        # Made one by one as workers get free: a job carries megabytes of attacks.
        made = (self._job(kind, k, k % self.settings.basins) for k in indices)
        jobs = Charged(made, self.charge)
        for position, trained in self.engine.run(run_job, jobs):
            files = {"weights": trained.weights, "attacks": trained.attacks}
            info = {**trained.info, "settings": self.fingerprint, **jobs.notes[position]}
            if kind == "base":
                info |= self.note
            self.made(self.vault.put(kind, indices[position], files, info))
            done += 1
            self.progress(stage, done, total)
        jobs.check()


def wave_of(settings: PopulationSettings) -> int:
    """How many members are trained at once, on attacks of those before them."""
    return max(settings.basins, _WAVE)


def attack_sources(
    vault: Vault, settings: PopulationSettings, index: int, file: str = "attacks"
) -> tuple[bytes, ...]:
    """Attacks of random members of the last three waves; the base's always among them.

    Args:
        file: what of these members is meant: their "attacks", or their "weights".
    """
    return tuple(vault.read(entry, file) for entry in source_entries(vault, settings, index))


def source_entries(vault: Vault, settings: PopulationSettings, index: int) -> list[Entry]:
    """The base and random members of the last three waves, which a repelled member flees."""
    wave = wave_of(settings)
    earlier = index - index % wave
    recent = [
        *(e for e in vault.entries("early") if e.index < GROWN),
        *(e for e in vault.entries("member") if e.index < earlier),
    ][-3 * wave :]
    generator = torch.Generator().manual_seed(seed_of(settings.seed, "sources", index))
    chosen = torch.randperm(len(recent), generator=generator)[: settings.sources - 1]
    entries = [vault.entry("base"), *(recent[int(i)] for i in chosen)]
    return [entry for entry in entries if entry is not None]


def fork_start(vault: Vault, settings: PopulationSettings, index: int, basin: int) -> Entry:
    """Where a fork begins: its basin's early checkpoint, or with `trunk` its latest member."""
    start, wave = vault.entry("early", basin), wave_of(settings)
    before = [k for k in range(index - index % wave) if k % settings.basins == basin]
    if before and settings.trunk and settings.recipe == "repelled":
        start = vault.entry("member", before[-1])
    assert start is not None, "basins and earlier waves are made first"
    return start


def fingerprint(
    settings: PopulationSettings,
    harden: HardenSettings,
    teacher: Teacher | None,
    mark: Mark | None = None,
    privacy: PrivacySettings | None = None,
) -> str:
    """What members depend on; the number of members and of workers may change later."""
    fields = {k: v for k, v in stored(settings).items() if k not in ("members", "workers")}
    if harden.stale != HardenSettings().stale:
        fields["stale"] = harden.stale
    if harden.recipe:  # else vaults from before there was hardening could not go on
        fields["hardening"] = {k: v for k, v in stored(harden).items() if k != "teacher"}
    if teacher is not None:
        fields["teacher"] = hashlib.sha256(teacher.weights).hexdigest()
    if mark is not None:
        fields["watermark"] = mark.digest
    if privacy is not None:  # a budget may be raised later, and what is judged on may change
        fields["privacy"] = {name: getattr(privacy, name) for name in _OF_TRAINING}
        if privacy.forks == PUBLIC:  # as above: for vaults from before there were such forks
            fields["privacy"] |= {"forks": PUBLIC, "soft": privacy.soft}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
