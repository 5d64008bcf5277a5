"""Private vaults of the benchmarks: settings that cost what is asked for, and how one is made."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.places import RUNS
from benchmarks.ownership.vaults import grow
from benchmarks.privacy.data import HELD, WAYS, people_and_public
from g2d import Defence, Settings, Task
from g2d.cli.progress import show_progress
from g2d.core.engine import SerialEngine
from g2d.defence.privacy import charging
from g2d.protect.privacy.accounting import Spending, epsilon
from g2d.settings import build
from g2d.tasks.sizes import defaults_of

SIZES = (
    "task", "members", "batch", "steps", "fork_steps", "public", "public_steps", "way",
    "noise_ratio", "light_eps", "examples", "accuracy_drop", "class_drop",
)  # fmt: skip
"""Flags that decide what a row says: rows of others are not mixed with them."""

Owed = Callable[[Settings], Sequence[Spending]]


def flags(parser: ArgumentParser) -> None:
    """What every benchmark of private vaults is told."""
    parser.add_argument("--data", default="", help="folder of the task's data")
    parser.add_argument("--task", default="mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--batch", type=int, default=1024, help="records a step, in expectation")
    parser.add_argument("--steps", type=int, default=700, help="private steps of the base")
    parser.add_argument("--fork-steps", type=int, default=30)
    parser.add_argument("--noise-ratio", type=float, default=2.0, help="fork's by base's")
    parser.add_argument("--light-eps", type=float, default=0.5, help="[population] light_eps")
    parser.add_argument("--public", type=int, default=6000, help="records declared public")
    parser.add_argument("--public-steps", type=int, default=0, help="[privacy] public_steps")
    parser.add_argument("--way", choices=WAYS, default=HELD, help="which records are public")
    parser.add_argument("--accuracy-drop", type=float, help="[gates]; else the task's own")
    parser.add_argument("--class-drop", type=float, help="[gates]; else the task's own")
    parser.add_argument("--examples", type=int, default=200, help="test examples that are attacked")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the vaults")


@dataclass(frozen=True)
class People:
    """A task whose records are people's, and where its public ones lie."""

    task: Task
    public: Path

    @classmethod
    def of(cls, given: Namespace) -> People:
        """By the flags; the public records are written once."""
        name = f"privacy-public-{given.task}-{given.way}-{given.public}"
        return cls(*people_and_public(
            given.task, given.data, given.runs / name, given.public, given.way
        ))  # fmt: skip

    @property
    def records(self) -> int:
        """Their public number: people in thousands (hundreds, where there are few)."""
        splits = self.task.splits
        count = sum(len(split) for split in (splits.train, splits.guide, splits.gate))
        return max(100, round(count, -3 if count >= 10_000 else -2))


def settings_of(people: People, given: Namespace, seed: int, target: float) -> Settings:
    """A private vault's settings, its noise still to be set by `calibrated`."""
    task = people.task
    made = build(Settings, defaults_of(task), task.name, stored=True)
    for name in ("accuracy_drop", "class_drop"):
        if (limit := getattr(given, name)) is not None:
            made = made.override(**{f"gates__{name}": limit})
    return made.override(
        task__name=task.name, task__eps=task.eps, population__seed=seed,
        population__members=given.members, population__recipe="repelled", population__basins=1,
        population__early_steps=0, population__light_eps=given.light_eps,
        harden__recipe=(), canaries__count=0,
        privacy__enabled=True, privacy__epsilon=target, privacy__delta=1e-5,
        privacy__records=people.records, privacy__public=str(people.public.absolute()),
        privacy__batch=given.batch, privacy__steps=given.steps,
        privacy__fork_steps=given.fork_steps, privacy__public_steps=given.public_steps,
    )  # fmt: skip


def owed(settings: Settings) -> list[Spending]:
    """What a whole population costs; read anew each time, for a planted fault may change it."""
    s = settings.population
    due = [("base", 0), *(("member", index) for index in range(s.members))]
    cost = charging.cost_of
    return [one for kind, index in due for one in cost(kind, index, settings.privacy, s)]


def calibrated(settings: Settings, ratio: float, due: Owed = owed) -> Settings:
    """The settings with the least noise that keeps the population within its budget.

    Args:
        ratio: the noise of forks by that of the base.
    """

    def with_noise(noise: float) -> Settings:
        return settings.override(privacy__noise=noise, privacy__fork_noise=ratio * noise)

    def within(noise: float) -> bool:
        p = settings.privacy
        return epsilon(due(with_noise(noise)), p.delta) <= 0.999 * p.epsilon

    low, high = 0.3, 1.0
    while not within(high):
        low, high = high, 2 * high
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return with_noise(round(high, 4))


def made(people: People, path: Path, settings: Settings, generations: int, seed: int) -> Defence:
    """A vault with its population and so many generations; what is there of it is kept."""
    defence = Defence.create(people.task, path, None if path.exists() else settings)
    with show_progress() as progress:
        defence.populate(SerialEngine(), progress)
        if generations:
            defence.fit(progress)
        while (there := len(defence.vault.numbers())) < generations + 1 and generations:
            grow(defence, seed)
            progress(f"generations ({path.name})", there, generations)
    return defence
