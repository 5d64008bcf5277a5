"""What each private training of a population is charged, before it is begun.

A training is a run of noisy steps, each on a Poisson sample of people's records (DP-SGD). Its whole
run is charged at once: one that is killed, or ends early, has perhaps told everything. Nothing here
spends; see `protect.privacy.ledger`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from g2d.errors import PrivacyError
from g2d.protect.privacy.accounting import UNIT, Spending
from g2d.settings import PopulationSettings
from g2d.settings.privacy import PUBLIC, PrivacySettings

if TYPE_CHECKING:
    from g2d.training.jobs import TrainingJob

OF_POPULATION = ("early", "member")
"""Kinds of jobs that are a population's forks, unless it is made of whole trainings."""

RECORDS = "records"
"""The block of the records that a vault began with; each refresh has one of its own."""

Charge = Callable[["TrainingJob"], Mapping[str, Any]]
"""Records what a job is about to spend, and returns what is to be noted with its checkpoint."""


def free(_: TrainingJob) -> Mapping[str, Any]:
    """Charge nothing: the vault is not private."""
    return {}


def is_whole(kind: str, recipe: str) -> bool:
    """Whether a training begins at fresh weights; else it is a fork's.

    Args:
        kind, recipe: of its job.
    """
    return kind == "base" or (kind in OF_POPULATION and recipe == "seeds")


def reads_people(kind: str, recipe: str, privacy: PrivacySettings) -> bool:
    """Whether a training of a private vault samples people's records.

    One answer decides what a training is given and what it is charged: with `[privacy] forks` =
    "public" the forks of a population are given public data alone, and cost nothing. Those of a
    refresh learn records of people that are new, whatever it says.
    """
    return privacy.forks != PUBLIC or is_whole(kind, recipe) or kind not in OF_POPULATION


def cost_of(
    kind: str,
    index: int,
    privacy: PrivacySettings,
    population: PopulationSettings,
    blocks: Sequence[str] = (RECORDS,),
) -> list[Spending]:
    """What one training spends, of each block whose records it samples; [] where it takes no step.

    Args:
        kind: of its job. blocks: all that its task holds; each record of any is in a sample with
            the same chance, batch / records.
    """
    p = privacy
    if kind == "early" and population.early_steps == 0:
        return []  # it is the base
    if not reads_people(kind, population.recipe, p):
        return []  # it is made of the base and public data (post-processing)
    whole = is_whole(kind, population.recipe)
    noise, steps = (p.noise, p.steps) if whole else (p.fork_noise, p.fork_steps)
    what = kind if kind == "base" else f"{kind} {index}"
    rate = min(1.0, p.batch / max(1, p.records))
    note = {UNIT: p.unit}
    return [Spending(what, block, "sampled_gaussian", noise, rate, steps, note) for block in blocks]


@dataclass
class Charged:
    """Jobs that are charged one by one, each before it is handed out.

    Attributes:
        notes: of each job that was handed out, by its position. refused: why no more were.
    """

    jobs: Iterator[TrainingJob]
    charge: Charge
    notes: list[Mapping[str, Any]] = field(default_factory=list)
    refused: PrivacyError | None = None

    def __iter__(self) -> Iterator[TrainingJob]:
        for job in self.jobs:
            try:
                self.notes.append(self.charge(job))
            except PrivacyError as error:
                self.refused = error  # what is paid for goes on, and is kept
                return
            yield job

    def check(self) -> None:
        """Raise what a job was refused for, once those before it have ended."""
        if self.refused is not None:
            raise self.refused
