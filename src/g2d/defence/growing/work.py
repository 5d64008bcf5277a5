"""A basin is grown: an early checkpoint of a fresh seed, members one after the other, a generator.

Everything is made in a folder inside the vault, while others may write the vault: a run that is
killed goes on where it stopped, and the vault stays as it was until `taking_up`. Members are made
and hardened as the population's are; only what they are repelled from differs (`against`).
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from g2d.core.types import State
from g2d.defence.defence import Defence
from g2d.defence.growing.against import Against
from g2d.defence.growing.plan import Grow, Plan, about, check, given_base
from g2d.defence.growing.taking_up import GENERATOR, PLAN, READY, grown_in
from g2d.defence.members import fit_generator, fitted_members, identity_of, noted, read_base
from g2d.defence.staging import staging
from g2d.errors import PopulationError
from g2d.protect.watermark.mark import Mark
from g2d.settings import PopulationSettings
from g2d.training.basins import BARRIER, midpoint, score
from g2d.training.jobs import Trained, TrainingJob, run_job
from g2d.training.population import stays_of
from g2d.training.recipes.distil import teacher_of
from g2d.vault.basins import BASIN, stock_of
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import unpack


@dataclass(frozen=True)
class Grown:
    """What a run has made: the basin's number, its members, CPU seconds of all its trainings."""

    basin: int
    members: int
    cpu: float


def grow(defence: Defence, how: Grow) -> Grown:
    """Grow one more basin of a vault; it is ready to be taken up afterwards.

    Args:
        defence: may be open for reading alone.

    Raises:
        SettingsError, PrivacyError, PopulationError, VaultError: no basin can be grown here, or
            what was grown is none of its own; the vault stays as it is.
    """
    check(defence, how)
    with _staging(defence, how) as staged:
        plan = Plan.read(staged.entry(PLAN))
        if plan is None:
            plan = Plan.make(defence, how)
            staged.put(PLAN, 0, {}, plan.note())
        else:
            plan.tell_kept(how)
        return _Work(defence, staged, plan, how).all()


@dataclass(frozen=True)
class _Work:
    """One run by one plan; what waits in the folder is not made again."""

    defence: Defence
    staged: Vault
    plan: Plan
    how: Grow

    def all(self) -> Grown:
        """Train, look whether it is a basin of its own, and fit the generator on all."""
        vault, plan, total = self.defence.vault, self.plan, 1 + self.plan.members
        done = len(self.staged.entries("early")) + len(self.staged.entries("member"))
        self.how.progress("growing", done, total)
        for place in range(-1, plan.members):
            kind, index = ("early", 0) if place < 0 else ("member", place)
            if self.staged.entry(kind, index) is None:
                self._train(kind, index, place)
                done += 1
                self.how.progress("growing", done, total)
        generator, fitted = vault.entry("generator"), self.staged.entry(GENERATOR)
        assert generator is not None, "it was looked for"
        if fitted is None or fitted.info.get("of") != generator.files["weights"]:
            began = time.process_time()
            self._check_own()
            self._fit(generator, began)
        kinds = ("early", "member", GENERATOR)
        made = [entry for kind in kinds for entry in self.staged.entries(kind)]
        cpu = sum(float(entry.info["cpu_seconds"]) for entry in made)
        return Grown(plan.basin, plan.members, cpu)

    @cached_property
    def settings(self) -> PopulationSettings:
        """The population's, with the plan's own seed: that one may be known to whoever reads it."""
        return replace(self.defence.settings.population, seed=self.plan.seed)

    @cached_property
    def against(self) -> Against:
        """What the basin is repelled from."""
        d, plan = self.defence, self.plan
        return Against(d.task, d.vault, self.settings, plan.seed, self.how.say)

    def _job(self, place: int) -> TrainingJob:
        """The training of a member, or before all of the early checkpoint (-1)."""
        d, s = self.defence, self.defence.settings
        early, given = place < 0, given_base(d.vault)
        recipe = "repelled" if early and given else s.population.recipe
        index = self.plan.basin if early else self.plan.first + place
        kind = "early" if early else "member"
        base = d.vault.entry("base")
        assert base is not None, "it was looked for"
        weights = d.vault.read(base)
        start: bytes | None = weights if given or s.autoencoder.scope else None
        if not early:
            trunk = s.population.trunk and recipe == "repelled" and place > 0
            before = self.staged.entry(*(("member", place - 1) if trunk else ("early", 0)))
            assert before is not None, "they are made one after the other"
            start = self.staged.read(before)
        return TrainingJob(
            d.task, kind, index, self.plan.basin, recipe, self.settings, start,
            self.against.pools(kind, index) if recipe == "repelled" else (),
            s.autoencoder.scope, s.harden, teacher_of(d.vault, s.harden),
            stays_of(d.task, weights), Mark.of(s.watermark, d.task, d.vault.path),
        )  # fmt: skip

    def _train(self, kind: str, index: int, place: int) -> None:
        """Train one and keep it, with what it took, attacks on what was exposed included."""
        began = time.process_time()
        trained: Trained = run_job(self._job(place))
        files = {"weights": trained.weights, "attacks": trained.attacks}
        cpu = round(time.process_time() - began, 2)
        self.staged.put(
            kind,
            index,
            files,
            {**trained.info, "settings": self.plan.fingerprint, "cpu_seconds": cpu},
        )

    # --- what came of it -------------------------------------------------------------------------

    def _check_own(self) -> None:
        """Say how good the newest member is, and refuse it where its basin is there already.

        Raises:
            PopulationError: at the midpoint with a member of another basin it keeps its accuracy.
        """
        d, plan = self.defence, self.plan
        newest = self.staged.entries("member")[-1]
        state, own = unpack(self.staged.read(newest)), float(newest.info["accuracy"])
        model = d.task.model(0).eval().requires_grad_(False)
        others = {int(entry.info[BASIN]): entry for entry in d.vault.entries("member")}
        middles = {
            basin: self._middle(model, state, unpack(d.vault.read(entry)))
            for basin, entry in others.items()
        }
        nearest = max(middles, key=middles.__getitem__)
        base = read_base(d.vault)
        self.how.say(
            f"basin {plan.basin}: its newest member is right on {own:.2%} of the gate split, the"
            f" base on {score(d.task, model, base, d.task.splits.gate):.2%}; at the midpoint with"
            f" any other basin {middles[nearest]:.2%} at most is left"
        )
        theirs = float(others[nearest].info["accuracy"])
        if min(own, theirs) - middles[nearest] <= BARRIER:
            raise PopulationError(
                f"the basin that was grown is basin {nearest}, which is there already: midway"
                f" between the two {middles[nearest]:.2%} are right. Nothing of the vault was"
                " changed. More [population] early_steps take a new basin farther away; --anew"
                " begins with another seed"
            )

    def _middle(self, model: nn.Module, one: State, other: State) -> float:
        return score(self.defence.task, model, midpoint(one, other), self.defence.task.splits.gate)

    def _fit(self, generator: Entry, began: float) -> None:
        """Fit the generator on members of all basins, and keep it beside the new one's."""
        d, s, plan = self.defence, self.defence.settings, self.plan
        moved = [replace(e, index=plan.first + e.index) for e in self.staged.entries("member")]
        both = _Both(d.vault, self.staged, {entry.index: entry for entry in moved})
        entries = fitted_members([*d.vault.entries("member"), *moved], s.autoencoder.newest_share)
        retired = stock_of(d.vault).outlived(s.growth.keep)
        fitted = fit_generator(
            d.task, both, s, entries, read_base(d.vault), self.how.progress, retired
        )
        info = {
            "identity": identity_of(entries, s, retired), READY: True,
            "of": generator.files["weights"], **noted(retired),
            "cpu_seconds": round(time.process_time() - began, 2),
        }  # fmt: skip
        self.staged.put(GENERATOR, 0, {"weights": fitted.to_bytes()}, info)


@dataclass(frozen=True)
class _Both:
    """Members of a vault and, by the indices that they will have, of the folder."""

    vault: Vault
    staged: Vault
    moved: dict[int, Entry]

    def read(self, entry: Entry, name: str = "weights") -> bytes:
        if self.moved.get(entry.index) is not entry:
            return self.vault.read(entry, name)
        first = min(self.moved)
        return self.staged.read(replace(entry, index=entry.index - first), name)


# --- the folder inside the vault -----------------------------------------------------------------


def _staging(defence: Defence, how: Grow) -> AbstractContextManager[Vault]:
    """The folder where a basin waits."""
    vault = defence.vault
    return staging(
        vault, grown_in(vault), lambda staged: _goes_on(staged, defence, how),
        anew=how.anew, busy=f"a basin of {vault.path} is being grown by another process",
        left=f"what an unfinished basin of {vault.path}",
    )  # fmt: skip


def _goes_on(staged: Vault, defence: Defence, how: Grow) -> bool:
    """Whether a basin that waits is of what the vault holds now."""
    plan = Plan.read(staged.entry(PLAN))
    if plan is None or how.anew:
        return False
    if plan.about != about(defence):
        how.say("an unfinished basin was of a former population: it is begun anew")
        return False
    waits = defence.vault.entry("early", plan.basin)
    return waits is None or waits.info.get("plan") != plan.id  # a kill came after it was taken up
