"""A challenger before it is taken up: all checks, and a trial of what its generator makes.

What single checks measure is in `checks` and `backdoor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from g2d.core.seeds import seed_of
from g2d.core.types import Progress
from g2d.defence.candidates import Candidate, Draw, Judge, draws_of, make
from g2d.defence.defence import Defence
from g2d.defence.generations import GenerationStore
from g2d.defence.members import read_base
from g2d.defence.refresh.backdoor import backdoor_check
from g2d.defence.refresh.checks import (
    Check,
    agreement_check,
    canary_check,
    class_check,
    influence_checks,
    noise_check,
    probabilities,
    spectral_check,
)
from g2d.defence.refusal import adapting, give_up, longest
from g2d.errors import DataError
from g2d.generator import Generator
from g2d.protect.canaries.kept import read_canaries
from g2d.settings import Settings
from g2d.tasks.inference import load_model
from g2d.tasks.keyed import Sorted, joined
from g2d.tasks.task import Task
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import unpack

_MOST = 8
"""Networks whose answers are averaged: the newest of each side."""

_HELP = {
    "agreement": "labels of other records, or numbered otherwise? Look at the file",
    "label_noise": "look at a sample of the labels by hand",
    "spectral": "look at that class's records: a trigger, or a new kind of object",
    "former_data": "forks forget what they knew: train them longer (`g2d population VAULT --set "
    "refresh.effort=..`, it is {effort:g}), give fewer new records, or allow more "
    "([refresh] former_drop)",
    "new_data": "the new records teach nothing: is this the drift that you think, and are their "
    "labels right?",
    "former_class": "look at the labels of new records that look like that class; if they are "
    "right, train longer (refresh.effort), or allow more ([refresh] class_drop)",
    "canaries": "look at the data before you go on",
    "backdoor": "find who supplied the data, and what these records have in those places; a class "
    "that has really become so easy looks alike",
}
"""What to do where a check fails, by its name."""


class Asked(Protocol):
    """What a refresh is asked for, as far as judging goes."""

    accept: bool

    def tell(self, line: str) -> None:
        """Say a line."""


def refuse(checks: Sequence[Check], how: Asked, effort: float) -> list[str]:
    """Say what was measured; names of the checks that failed, if that is accepted.

    Args:
        effort: `[refresh] effort`, as it is.

    Raises:
        DataError: one failed, and it is not.
    """
    for check in checks:
        how.tell(("" if check.passed else "REFUSED: ") + check.text)
    failed = [check for check in checks if not check.passed]
    if failed and not how.accept:
        raise DataError(
            "the new data are refused: "
            + "; ".join(
                f"{check.text} ({_HELP[check.name].format(effort=effort)})" for check in failed
            )
            + ". Nothing of the vault was changed. --accept-data takes them all the same, once you"
            " have looked at them; [refresh] holds the limits, which `g2d population VAULT --set`"
            " changes"
        )
    return [check.name for check in failed]


class Judged:
    """The checks of one refresh; `found` are those that were made so far."""

    def __init__(self, defence: Defence, records: Sorted, grown: Task) -> None:
        self.defence, self.records, self.grown = defence, records, grown
        self.limits = defence.settings.refresh
        self.found: list[Check] = []

    def before(self) -> list[Check]:
        """What can be told before anything is trained."""
        new = joined(self.records.sides, "train", "guide", "gate")
        live = self._models(self.defence.vault, self.defence.vault.entries("member"))
        p = probabilities(live, new.x)
        made = [agreement_check(p, new, self.grown.classes, self.limits.agreement)]
        self.found += made
        return made

    def after(self, staged: Vault, progress: Progress) -> list[Check]:
        """What only shows in networks that have learned the new data."""
        sides, vault, task = self.records.sides, self.defence.vault, self.grown
        unseen = joined(sides, "guide", "gate")
        forks = self._models(staged, staged.entries("member"))
        old, new = (load_model(task, read_base(one)) for one in (vault, staged))
        progress("looking for poison", 0, 3)
        made = [noise_check(probabilities(forks, unseen.x), unseen.y, self.limits.label_noise)]
        live, train = self._models(vault, vault.entries("member")), sides["train"]
        spectral = spectral_check(
            new, probabilities(live, train.x), train, task.classes, self.limits.spectral
        )
        made.append(spectral or _unjudged(self.limits.spectral))
        progress("looking for poison", 1, 3)
        # Gates let every generation lose as much: a base may, too.
        lost = max(self.limits.former_drop, self.defence.settings.gates.accuracy_drop)
        made += influence_checks(old, new, self.defence.task.splits.gate, sides["gate"], lost)
        made.append(
            class_check(
                old, new, self.defence.task.splits.gate, task.classes, self.limits.class_drop
            )
        )
        made += self._canaries(forks)
        progress("looking for poison", 2, 3)
        seed = seed_of(self.defence.settings.population.seed, "backdoor")
        scan = backdoor_check(
            old, new, task, sides["train"], self.limits.backdoor, self.limits.backdoor_steps, seed
        )
        made += [scan] if scan else []
        progress("looking for poison", 3, 3)
        self.found += made
        return made

    def _canaries(self, forks: Sequence[nn.Module]) -> list[Check]:
        vault = self.defence.vault
        live = vault.live()
        kept = read_canaries(vault, live) if live is not None else None
        if kept is None:
            return []
        former = self._models(vault, vault.entries("member"))
        like = self.grown.splits.guide.x.dtype
        x, labels = torch.from_numpy(kept.x).to(like), torch.from_numpy(kept.labels)
        return [canary_check(former, forks, x, labels)]

    def _models(self, vault: Vault, entries: Sequence[Entry]) -> list[nn.Module]:
        return [load_model(self.grown, unpack(vault.read(entry))) for entry in entries[-_MOST:]]


def _unjudged(limit: float) -> Check:
    text = "spectral signature: not judged, for no class has enough records that stand apart"
    return Check("spectral", True, 0.0, limit, text)


def trial(
    defence: Defence, grown: Task, staged: Vault, generator: Generator, progress: Progress
) -> Candidate:
    """Make a candidate that passes every gate, on the former gate data and on the new; it is thrown
    away: what goes live is drawn anew, once the generator is the vault's own.

    Raises:
        GenerationError: none passes.
    """
    s, vault = defence.settings, defence.vault
    store = GenerationStore(grown, vault, s, defence.code, defence.task.splits)
    judge = Judge(grown, read_base(staged), s.autoencoder.scope, store.mark())
    exposed = defence.exposed()
    remembered = exposed[max(0, len(exposed) - s.guidance.memory) :]
    recent = [store.exposure(number, generator.codec) for number in remembered]
    states = {number: store.state(number) for number in exposed[-s.gates.history :]}

    def tick(done: int, total: int) -> None:
        progress("trying a generation", done, total)

    def made(draws: list[Draw], settings: Settings) -> Iterator[Candidate]:
        for draw in draws:
            yield make(grown, settings, generator, judge, recent, states, draw, tick)

    rejected = []
    draws = draws_of(vault.next_number(), None, s.gates.attempts, ())
    for candidate in adapting(draws, s, made, longest(grown, s)):
        if candidate.passed:
            return candidate
        rejected.append(candidate)
    raise give_up(rejected, s)
