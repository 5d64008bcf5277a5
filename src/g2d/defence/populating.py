"""A population is made, and watched beside its base: members that gates would refuse are said.

How members are trained is in `training.population`.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from g2d.core.engine import Engine
from g2d.core.types import Progress, Say, State
from g2d.defence.candidates import Judge
from g2d.defence.gates.accuracy import accuracy_gate, class_gate
from g2d.defence.gates.view import CandidateView, GateResult
from g2d.defence.opening import default_engine
from g2d.defence.privacy.charging import Charger
from g2d.defence.privacy.mode import check_adopting
from g2d.errors import PopulationError, VaultError
from g2d.protect.watermark.mark import Mark
from g2d.settings import Settings
from g2d.tasks.attack import note_of as attack_note
from g2d.tasks.inference import load_model
from g2d.tasks.source import TaskSource, data_digest
from g2d.tasks.task import Task
from g2d.training.adopt import GIVEN, adopt_base, adopt_checkpoints
from g2d.training.charging import free
from g2d.training.population import build_population
from g2d.vault.federated import is_federated
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import unpack

_FAR = 0.05, 5.0
"""How far below the base a member is worth a word: points, and times [gates] accuracy_drop.

Early members of a repelled trunk stand one to three points below a base; polish brings that back.
"""
_LONGER = (
    "Begin another vault (`g2d watermark new`) with longer training ([population] base_steps, "
    "early_steps, fork_steps), a larger weight or batch in [watermark], or fewer sets or triggers"
)


def populate(
    task: Task,
    source: TaskSource,
    vault: Vault,
    settings: Settings,
    engine: Engine | None,
    progress: Progress,
    tell: Say | None,
) -> None:
    """Make the population of a vault, or what is missing of it; see `Defence.populate`."""
    if vault.source:
        return  # refreshed: it is whole, and goes on by the next refresh
    adopted = [e for e in vault.entries("member") if e.info.get("recipe") == "adopted"]
    if adopted:
        if len(adopted) < adopted[0].info["of"]:
            raise PopulationError(
                f"only {len(adopted)} of {adopted[0].info['of']} checkpoints were adopted; run "
                "`g2d population` with --from-checkpoints again"
            )
        return
    if is_federated(vault):
        check_whole(vault, settings)
        return
    mark = Mark.of(settings.watermark, task, vault.path)
    watch = BesideBase(task, vault, settings, tell, mark)
    base = vault.entry("base")
    if base is not None and not vault.entries("member"):
        watch.see(base)  # a run that was refused for its base's sake is refused again
    charge = Charger.of(vault, settings)
    if charge is not None:
        charge.check_all_due()
    with _engine(engine, source, settings) as jobs:
        build_population(
            source,
            vault,
            settings.population,
            jobs,
            progress,
            settings.autoencoder.scope,
            note_of(task),
            settings.harden,
            watch.see,
            mark,
            charge or free,
            settings.privacy if settings.privacy.enabled else None,
        )
    watch.end()


def take_base(task: Task, vault: Vault, settings: Settings, state: State, say: Say) -> None:
    """Take a deployed model as the base; see `Defence.adopt_base`."""
    check_adopting(settings, "a base that is adopted")
    adopt_base(task, vault, settings, state, note_of(task), say)


def take_zoo(
    task: Task, vault: Vault, settings: Settings, folder: Path, progress: Progress, say: Say
) -> None:
    """Take a folder of checkpoints as the population; see `Defence.adopt`."""
    check_adopting(settings, f"the zoo {folder}")
    if any(e.info.get("recipe") != "adopted" for e in vault.entries("member")):
        raise VaultError(f"{vault.path} has a population already; use a new folder")
    adopt_checkpoints(task, vault, settings.population, folder, progress, note_of(task), say)


def check_whole(vault: Vault, settings: Settings) -> None:
    """Refuse to go on with a federated population that lacks members.

    Raises:
        PopulationError: it is not complete; no data are here to finish it with.
    """
    there, wanted = len(vault.entries("member")), settings.population.members
    if there < wanted:
        raise PopulationError(
            f"{vault.path} holds {there} of {wanted} members that clients train: run the same "
            "`g2d federated` command again, or set [population] members to what is there"
        )


def note_of(task: Task) -> dict[str, Any]:
    """What is kept with a base: its data, the names of the classes, how the task is attacked."""
    named = {"labels": list(task.labels)} if task.labels else {}
    return {"data": data_digest(task), **named, **attack_note(task)}


def _engine(engine: Engine | None, source: TaskSource, settings: Settings) -> nullcontext[Engine]:
    if engine is not None:
        return nullcontext(engine)
    return _Own(default_engine(source, settings.population.workers))


class _Own(nullcontext[Engine]):
    """An engine that is closed at the end."""

    def __exit__(self, *_: object) -> None:
        self.enter_result.close()


class BesideBase:
    """Holds each new member against the base, as the accuracy gates would a candidate.

    Args:
        tell: hears at once, and once more at the end, if a member stands far below the base; None:
            a `UserWarning`, where the base was given, and of a mark that members lack. mark: that
            all of them are to carry.
    """

    def __init__(
        self,
        task: Task,
        vault: Vault,
        settings: Settings,
        tell: Say | None,
        mark: Mark | None = None,
    ) -> None:
        self._task, self._vault, self._settings, self._tell = task, vault, settings, tell
        self._mark, self._unmarked = mark, 0
        self._judge: Judge | None = None
        self._seen = self._passed = 0
        self._told_at = 0

    def see(self, entry: Entry) -> None:
        """Look at a checkpoint that has just been kept.

        Raises:
            PopulationError: the base has not learned the mark; members would not, either.
        """
        self._see_mark(entry)
        if entry.kind != "member":
            return
        base = self._vault.entry("base")
        assert base is not None, "the base is made first"
        if self._judge is None:
            self._judge = Judge(self._task, unpack(self._vault.read(base)))
        results = self._results(self._judge, unpack(self._vault.read(entry)))
        self._seen += 1
        self._passed += all(result.passed for result in results)
        points, times = _FAR
        drop = float(base.info["accuracy"]) - float(entry.info["accuracy"])
        far = drop > max(points, times * self._settings.gates.accuracy_drop)
        if far and not self._told_at:
            self._told_at = self._seen
            self._say(
                f"member {entry.index} is right on {float(entry.info['accuracy']):.2%} of the gate "
                f"split, the base on {float(base.info['accuracy']):.2%}: {self._estimate()}. "
                "Raise fork_steps and early_steps in [population], or lower rate and fork_rate; "
                "else generations will hardly pass [gates] accuracy_drop"
            )

    def _see_mark(self, entry: Entry) -> None:
        """Refuse a base without the mark at once, and say it of the first member without."""
        mark, share = self._mark, float(entry.info.get("watermark", 1.0))
        if mark is None or share >= mark.least or entry.kind not in ("base", "member"):
            return
        learned = f"answers {share:.0%} of a set's triggers, and {mark.least:.0%} are required"
        if entry.kind == "base" and entry.info.get("recipe") != GIVEN:
            raise PopulationError(
                f"the base has not learned the watermark: it {learned}. Nothing else was trained. "
                f"{_LONGER}"
            )
        if entry.kind == "member":
            self._unmarked += 1
            if self._unmarked == 1:
                self._say(
                    f"member {entry.index} has not learned the watermark: it {learned}; of such "
                    f"members no generation passes its gate. {_LONGER}",
                    True,
                )

    def end(self) -> None:
        """Say what became of it, where something was said before."""
        if self._unmarked > 1:
            self._say(f"{self._unmarked} new members have not learned the watermark", True)
        if self._told_at and self._seen > self._told_at:
            self._say(f"the population is complete: {self._estimate()}")

    def _estimate(self) -> str:
        members = self._settings.population.members
        about = round(self._passed / self._seen * members)
        text = f"{self._passed} of {self._seen} new members would pass the accuracy gates"
        return text if self._seen >= members else f"{text} so far, of all {members} about {about}"

    def _results(self, judge: Judge, state: dict[str, Tensor]) -> list[GateResult]:
        model, gates = load_model(self._task, state), self._settings.gates
        view = CandidateView(state, model, judge.reference, (), {}, (), gates)
        return [accuracy_gate(view), class_gate(view)]

    def _say(self, text: str, always: bool = False) -> None:
        if self._tell is not None:
            self._tell(text)
            return
        base = self._vault.entry("base")
        if always or (base is not None and base.info.get("recipe") == GIVEN):
            warnings.warn(text, stacklevel=2)
