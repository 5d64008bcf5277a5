"""Rounds of a client that trains privately, record by record: what each costs, and how it trains.

DP-SGD as in one place (`recipes.private`): a client's records lend themselves to Poisson samples,
clipped gradients and noise of the operating system. What it sends, smoothed or not, and whatever
the server makes of it, costs nothing more. Who keeps count is in `ledgers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from g2d.errors import SettingsError
from g2d.protect.privacy.accounting import UNIT, Spending
from g2d.protect.privacy.releases import ANSWER
from g2d.settings import Settings
from g2d.settings.privacy import PUBLIC
from g2d.tasks.shielded import one_of_each
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.charging import RECORDS
from g2d.training.federated.messages import Message
from g2d.training.federated.stages import KINDS, agreed_rounds, place_of
from g2d.training.recipes import PrivatePlan, find
from g2d.training.recipes.private_check import check_private_training

_PURPOSE = b"g2d client's records 1\0"


def check_private(task: Task, settings: Settings) -> None:
    """Refuse what would give a client no guarantee, before anything is spent.

    Raises:
        SettingsError: a setting, a recipe or the model does not allow private training.
        G2DError: opacus or dp-accounting is not installed.
    """
    # Early checkpoints and basins of clients are paid for round by round, as all stages are.
    if settings.privacy.forks == PUBLIC:
        raise SettingsError(
            "[privacy] forks = 'public' is of a vault that trains its own population: a client has"
            " records of people alone, and pays for each round; set forks = 'private'"
        )
    alone = replace(settings.population, basins=1, early_steps=0)
    check_private_training(task, settings.privacy, alone, settings.harden)


def records_of(records: Split, identity: str, settings: Settings) -> Split:
    """A client's records, one of each unit of privacy: what a Poisson sample is drawn from.

    Args:
        identity: of its ledger, by which one of several copies is chosen.

    Raises:
        PrivacyError: the unit is no column of the records.
    """
    key = hashlib.sha256(_PURPOSE + identity.encode()).digest()
    return one_of_each(records, key, settings.privacy.unit)


def cost_of_round(stage: str, number: int, settings: Settings) -> Spending:
    """What a client spends for one answer: as many noisy steps as it takes."""
    p, own = settings.privacy, stage.startswith("member-")
    rate = min(1.0, p.batch / max(1, p.records))
    return Spending(
        f"round {number} of {stage}", RECORDS, "sampled_gaussian",
        p.fork_noise if own else p.noise, rate, settings.federated.local_steps,
        {UNIT: p.unit, ANSWER: True},
    )  # fmt: skip


def rounds_left(settings: Settings, last: Message | None = None) -> list[Spending]:
    """What the rest of a run costs a client that answers every round, in the order of its stages.

    Args:
        last: its last answer; None: it has given none.
    """
    done = place_of(last.stage, last.number) if last is not None else (-1, 0, 0)
    return [
        cost_of_round(stage, number, settings)
        for stage in _stages(settings)
        for number in range(agreed_rounds(stage, settings))
        if place_of(stage, number) > done
    ]


def _stages(settings: Settings) -> Iterator[str]:
    s = settings.population
    for kind, count in zip(KINDS, (1, s.basins, s.members), strict=True):
        yield from (f"{kind}-{index}" for index in range(count))


def plan_of(
    task: Task, settings: Settings, stage: str, released: Sequence[nn.Module]
) -> PrivatePlan:
    """How a client's records are learned in one round.

    Args:
        released: the networks that are to be fled, as the server sent them: no record is in an
            attack on one but its own.
    """
    s, p = settings.population, settings.privacy
    return PrivatePlan(
        p,
        p.fork_noise if stage.startswith("member-") else p.noise,
        any(find(name).adversarial for name in settings.harden.recipe),
        s.light_eps * task.eps if released else 0.0,
        released,
    )
