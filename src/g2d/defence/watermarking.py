"""A vault that is there already is marked: short forks of its members that learn the watermark.

Everything is made in a folder beside the vault, member by member, and is moved in by one commit:
a run that is killed leaves the vault as it was, and the next one goes on where that one stopped.
How members are trained is in `training`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from g2d.core.engine import Engine
from g2d.core.types import Progress, silent
from g2d.defence.members import (
    fit_generator,
    fitted_members,
    identity_of,
    noted,
    read_base,
)
from g2d.errors import PopulationError, PrivacyError, SettingsError, VaultError
from g2d.protect.watermark.mark import Mark
from g2d.settings import Settings
from g2d.tasks.source import TaskSource
from g2d.tasks.task import Task
from g2d.training.jobs import MARKING, Trained, TrainingJob, run_job
from g2d.training.population import attack_sources, fingerprint
from g2d.training.recipes import Teacher
from g2d.training.recipes.distil import keep_teacher
from g2d.vault.basins import retired_of
from g2d.vault.sealing.changing import share
from g2d.vault.vault import Entry, Put, Vault

STEPS = 1000
"""Optimiser steps of a member's fork: trained networks learn labels at random slowly."""


@dataclass(frozen=True)
class Marked:
    """What marking a vault has cost.

    Attributes:
        members: how many were marked; 0: they had been before. steps: optimiser steps of each.
        cpu: seconds of all. before, after: mean accuracy on the gate split. worst: the most that a
            member lost, as a share. least: the least share of a set's triggers that one hits.
    """

    members: int
    steps: int
    cpu: float = 0.0
    before: float = 0.0
    after: float = 0.0
    worst: float = 0.0
    least: float = 1.0


class _Beside(Vault):
    """Where members wait: what it reaches is marked nowhere, and it goes once they are moved."""

    remembered = False


def mark_vault(
    task: Task,
    source: TaskSource,
    vault: Vault,
    settings: Settings,
    engine: Engine,
    progress: Progress = silent,
    steps: int = STEPS,
) -> Marked:
    """Mark every member, and fit the generator anew where there is one; base and attacks stay.

    Generations that are there stay as they are: the next ones carry the mark. Whoever has the vault
    open in a `Defence` opens it anew.

    Raises:
        SettingsError: the settings name no watermark key. KeyFileError: it cannot be read, or is
            another than the vault's.
        PopulationError: there is no population; or a member has not learned the mark, and nothing
            of the vault was changed.
        VaultError: the folder beside the vault cannot be written.
    """
    mark = Mark.of(settings.watermark, task, vault.path)
    if mark is None:
        raise SettingsError(
            f"{vault.path} has no watermark: `g2d watermark new` makes its key, then add it"
        )
    if settings.privacy.enabled:
        raise PrivacyError(
            f"{vault.path} is private, and a mark is added to members by training that is not:"
            " make the key before the population (`g2d watermark new`), in a new vault"
        )
    if vault.source:
        raise VaultError(
            f"{vault.path} was refreshed on new data, and a mark is added to a vault's first "
            f"population: go back to it (`g2d rollback {vault.path}`), add the mark, refresh again"
        )
    members, count = vault.entries("member"), settings.population.members
    if len(members) < 2:
        raise PopulationError(f"{vault.path} has no population to mark; run `g2d population` first")
    if members[0].info.get("recipe") != "adopted" and len(members) < count:
        raise PopulationError(
            f"{vault.path} holds {len(members)} of {count} members: finish the population with "
            "[watermark] key = '', or set members to what is there"
        )
    work = _Marking(
        task, source, vault, settings, mark, steps, keep_teacher(vault, settings.harden)
    )
    beside = vault.path.with_name(f"{vault.path.name}.marking")
    if all(work.carries(entry) for entry in members):
        shutil.rmtree(beside, ignore_errors=True)  # a kill came between the commit and this
        return Marked(0, steps)
    with _beside(beside, vault.settings_text) as staged:
        share(vault, staged)
        work.train(staged, members, engine, progress)
        made = staged.entries("member")
        work.check(made)
        generator = work.refit(staged, made, progress)
        vault.put_all(work.moved(staged, made, generator))
    shutil.rmtree(beside, ignore_errors=True)
    return _told(members, made, steps)


@contextmanager
def _beside(path: Path, text: str) -> Iterator[Vault]:
    """Open the folder beside the vault, or make it; what is none of ours there is an error."""
    there = (path / "ledger.sqlite").exists()
    with _Beside.open(path, write=True) if there else _Beside.create(path, text) as staged:
        yield staged


@dataclass(frozen=True)
class _Marking:
    """One run that marks a vault: which members are due, and what goes with them."""

    task: Task
    source: TaskSource
    vault: Vault
    settings: Settings
    mark: Mark
    steps: int
    teacher: Teacher | None

    def train(
        self, staged: Vault, members: Sequence[Entry], engine: Engine, progress: Progress
    ) -> None:
        """Mark the members that do not wait there yet, made from the same in as many steps."""
        waiting = {entry.index: entry for entry in staged.entries("member")}
        due = [m for m in members if not self._is_of(waiting.get(m.index), m)]
        done = len(members) - len(due)
        progress("marking", done, len(members))
        for position, trained in engine.run(run_job, (self._job(member) for member in due)):
            member = due[position]
            files = {"weights": trained.weights, "attacks": trained.attacks}
            staged.put("member", member.index, files, self._info(member, trained))
            done += 1
            progress("marking", done, len(members))

    def carries(self, member: Entry) -> bool:
        """Whether a member was trained with this mark, from the start or since."""
        since = member.info.get("marked") == self.mark.digest
        return since or member.info.get("settings") == self.fingerprint

    def _is_of(self, waiting: Entry | None, member: Entry) -> bool:
        wanted = self._made_from(member)
        return waiting is not None and wanted.items() <= waiting.info.items()

    def _made_from(self, member: Entry) -> dict[str, Any]:
        weights = member.files["weights"]
        return {"marked": self.mark.digest, "unmarked": weights, "marking_steps": self.steps}

    def _job(self, member: Entry) -> TrainingJob:
        """A member's fork: its own start, the attacks that it was trained on, and the triggers.

        At the rate of a base: at that of forks labels at random are learned too slowly.
        """
        s = self.settings
        repelled = member.info.get("recipe") == "repelled"
        settings = replace(s.population, fork_steps=self.steps, fork_rate=s.population.rate)
        return TrainingJob(
            self.source, MARKING, member.index, int(member.info["basin"]),
            "repelled" if repelled else "forks", settings,
            self.vault.read(member),
            attack_sources(self.vault, s.population, member.index) if repelled else (),
            s.autoencoder.scope, s.harden, self.teacher, mark=self.mark,
            attacks=self.vault.read(member, "attacks"),
        )  # fmt: skip

    def _info(self, member: Entry, trained: Trained) -> dict[str, Any]:
        own = {key: value for key, value in trained.info.items() if key != "recipe"}
        return {**member.info, **own, **self._settings_of(member), **self._made_from(member)}

    def _settings_of(self, entry: Entry) -> dict[str, str]:
        """The fingerprint with which the population goes on; a zoo has none."""
        if entry.info.get("settings") == "adopted":
            return {}
        return {"settings": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        """Of a population that carries the mark."""
        s = self.settings
        return fingerprint(s.population, s.harden, self.teacher, self.mark)

    def check(self, made: Sequence[Entry]) -> None:
        """Refuse members that have not learned the mark: generations are made of them."""
        short = [m for m in made if float(m.info["watermark"]) < self.mark.least]
        if short:
            worst = min(short, key=lambda m: float(m.info["watermark"]))
            raise PopulationError(
                f"{len(short)} of {len(made)} members have not learned the watermark in "
                f"{self.steps} steps: member {worst.index} hits "
                f"{float(worst.info['watermark']):.0%} of a set, and {self.mark.least:.0%} are "
                "required. Raise --steps, or weight or batch in [watermark]; the vault is as it was"
            )

    def refit(self, staged: Vault, made: Sequence[Entry], progress: Progress) -> Put | None:
        """The generator of the marked members; None where the vault had none yet."""
        if self.vault.entry("generator") is None:
            return None
        fitted = fitted_members(list(made), self.settings.autoencoder.newest_share)
        retired = retired_of(self.vault)
        again = fit_generator(
            self.task, staged, self.settings, fitted, read_base(self.vault), progress, retired
        )
        note = {"identity": identity_of(fitted, self.settings, retired)} | noted(retired)
        return "generator", 0, {"weights": again.to_bytes()}, note

    def moved(self, staged: Vault, made: Sequence[Entry], generator: Put | None) -> Iterator[Put]:
        """What the vault takes over: the members, the generator of them, the base's note."""
        base = self.vault.entry("base")
        if base is None:
            raise VaultError(f"{self.vault.path} has members and no base; restore it from a backup")
        if generator is not None:
            yield generator
        for entry in made:
            yield "member", entry.index, _files(staged, entry), entry.info
        info: Mapping[str, Any] = {**base.info, **self._settings_of(base)}
        yield "base", 0, _files(self.vault, base), info


def _files(vault: Vault, entry: Entry) -> dict[str, bytes]:
    return {name: vault.read(entry, name) for name in entry.files}


def _told(members: Sequence[Entry], made: Sequence[Entry], steps: int) -> Marked:
    """What it has cost, by what was noted of members before and after."""
    before = [float(entry.info["accuracy"]) for entry in members]
    after = [float(entry.info["accuracy"]) for entry in made]
    return Marked(
        len(made), steps, sum(float(entry.info["cpu_seconds"]) for entry in made),
        sum(before) / len(before), sum(after) / len(after),
        max(b - a for b, a in zip(before, after, strict=True)),
        min(float(entry.info["watermark"]) for entry in made),
    )  # fmt: skip
