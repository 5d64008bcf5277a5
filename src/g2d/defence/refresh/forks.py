"""The forks of a refresh: base and newest members go on for a few steps, on old and new data.

All together they take a set share of the population's optimiser steps. A fork begins at its member
and keeps its basin; where members were repelled from each other's attacks, forks are, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from g2d.core.engine import Engine
from g2d.core.seeds import seed_of
from g2d.core.types import Progress
from g2d.defence.members import fitted_members
from g2d.defence.privacy.charging import Charger
from g2d.protect.watermark.mark import Mark
from g2d.settings import Settings
from g2d.tasks.source import TaskSource
from g2d.tasks.task import Task
from g2d.training.charging import Charge, Charged, free
from g2d.training.jobs import REFRESHING, Trained, TrainingJob, run_job
from g2d.training.recipes.distil import teacher_of
from g2d.vault.vault import Entry, Vault

REFRESHED = "refreshed"
"""The recipe of a member that was forked on new data; the generator is fitted on all of these."""


@dataclass(frozen=True)
class Forks:
    """Which forks there are, and which are due yet.

    Attributes:
        source: the task with its new records. vault: what is forked. staged: where forks wait.
        former: the task as the vault's source knows it. charge: hears of each fork before it is
            handed out; what it says is kept with the fork.
    """

    source: TaskSource
    vault: Vault
    staged: Vault
    settings: Settings
    former: Task
    charge: Charge = free

    @cached_property
    def starts(self) -> list[Entry]:
        """What is forked: the base, and the members that the generator was fitted on."""
        base = self.vault.entry("base")
        assert base is not None, "a vault with a generator has a base"
        share = self.settings.autoencoder.newest_share
        return [base, *fitted_members(self.vault.entries("member"), share)]

    @cached_property
    def steps(self) -> int:
        """Optimiser steps of each fork; of private ones as many as are charged."""
        if self.settings.privacy.enabled:
            return self.settings.privacy.fork_steps
        p, count = self.settings.population, len(self.starts)
        total = p.base_steps + p.basins * p.early_steps + p.members * p.fork_steps
        return max(1, round(self.settings.refresh.effort * total / count))

    @property
    def rate(self) -> float:
        """Adam's peak rate of each fork. Noise of private ones is tuned to the population's."""
        own = self.settings.population.fork_rate
        return own if self.settings.privacy.enabled else min(10.0, own * self.settings.refresh.rate)

    def train(self, engine: Engine, progress: Progress) -> float:
        """Train the forks that do not wait there yet; return the CPU seconds of all.

        Raises:
            PrivacyError: the budget does not cover the next fork; those before it wait.
        """
        due = [k for k, entry in enumerate(self.starts) if not self._waits(k, entry)]
        if isinstance(self.charge, Charger):
            self.charge.check_due(REFRESHING, [self.starts[k].index for k in due])
        done, total = len(self.starts) - len(due), len(self.starts)
        progress("refreshing", done, total)
        jobs = Charged((self._job(k) for k in due), self.charge)
        for position, trained in engine.run(run_job, jobs):
            place = due[position]
            self._keep(place, trained, jobs.notes[position])
            done += 1
            progress("refreshing", done, total)
        jobs.check()
        made = [self.staged.entry("base"), *self.staged.entries("member")]
        return sum(float(entry.info["cpu_seconds"]) for entry in made if entry is not None)

    def _kept(self, place: int) -> Entry | None:
        return self.staged.entry("base") if place == 0 else self.staged.entry("member", place - 1)

    def _waits(self, place: int, start: Entry) -> bool:
        kept = self._kept(place)
        return kept is not None and self._made_from(start).items() <= kept.info.items()

    def _made_from(self, start: Entry) -> dict[str, Any]:
        return {
            "forked": start.files["weights"], "refresh_steps": self.steps,
            "refresh_rate": self.rate,
        }  # fmt: skip

    def _job(self, place: int) -> TrainingJob:
        start, s = self.starts[place], self.settings
        how = str(start.info.get("how", start.info.get("recipe")))
        repelled, private = how == "repelled", s.privacy.enabled
        population = replace(
            s.population, fork_steps=self.steps, fork_rate=self.rate,
            pool=min(s.population.pool, s.refresh.pool),
        )  # fmt: skip
        return TrainingJob(
            self.source, REFRESHING, start.index, int(start.info["basin"]),
            "repelled" if repelled else "forks", population, self.vault.read(start),
            self._attacks(place) if repelled and not private else (), s.autoencoder.scope, s.harden,
            teacher_of(self.vault, s.harden),
            mark=Mark.of(s.watermark, self.former, self.vault.path),
            privacy=s.privacy if private else None,
            released=self._attacks(place, "weights") if repelled and private else (),
        )  # fmt: skip

    def _attacks(self, place: int, file: str = "attacks") -> tuple[bytes, ...]:
        """Attacks that a fork is repelled from: the base's, and those of random other starts.

        A private fork is given the networks themselves (`file`: "weights").
        """
        others = [k for k in range(1, len(self.starts)) if k != place]
        source = torch.Generator().manual_seed(
            seed_of(self.settings.population.seed, REFRESHING, self.starts[place].index)
        )
        order = torch.randperm(len(others), generator=source)
        chosen = [others[int(k)] for k in order[: self.settings.population.sources - 1]]
        return tuple(self.vault.read(self.starts[k], file) for k in [0, *chosen])

    def _keep(self, place: int, trained: Trained, notes: Mapping[str, Any]) -> None:
        start = self.starts[place]
        files = {"weights": trained.weights, "attacks": trained.attacks}
        own: Mapping[str, Any] = {
            **trained.info, **self._made_from(start), "basin": int(start.info["basin"]),
            "recipe": REFRESHED, "how": start.info.get("how", start.info.get("recipe")),
            "settings": REFRESHED, **notes,
        }  # fmt: skip
        if place == 0:  # what ties the vault to its data, and how it is attacked, stays
            self.staged.put("base", 0, files, {**start.info, **own, "index": 0})
        else:
            self.staged.put("member", place - 1, files, {**own, "index": place - 1})
