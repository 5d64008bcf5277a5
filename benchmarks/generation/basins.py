"""The table that decides: ways of making the next parameters, against the strongest stale attacker.

    python -m benchmarks.generation.basins --data ../shared/data/mnist --seeds 0

Every row is a chain of networks: the attacker has read 24 of them, sorts them by basin, attacks;
those after them are judged (`judge`). The vault is `runs/basins-<seed>`; its population is made
first (a dozen minutes on two cores), a row takes two to ten minutes of one core. Rows that are in
benchmarks/results/basins-mnist-seed<seed>.json are not measured again, so a run goes on where it
stopped; `--rows` picks some. `--task nsl-kdd` asks the same of another task, by its own settings;
its vault is `runs/basins-nsl-kdd-<seed>`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import hardware, save
from benchmarks.common.tables import mean
from benchmarks.generation.judge import Budget, Judge
from benchmarks.generation.starts import Chain, Starts
from benchmarks.generation.ways import Maker
from g2d import Defence, Settings, load_task
from g2d.cli.progress import show_progress
from g2d.core.engine import LocalEngine
from g2d.core.types import State
from g2d.defence.members import bank_of, fitted_members
from g2d.settings import GuidanceSettings, build
from g2d.tasks.sizes import defaults_of

KNOWN, TARGETS, RETRAINED, PROPOSALS = 24, 10, 3, 4
COUNT = KNOWN + TARGETS - 1  # networks after the base
FREE = ("member", "noise", "interpolation", "soup", "gaussian", "diffusion")
PLAIN = GuidanceSettings(
    resting=False, joint_weight=0.0, bank_weight=0.0, polish_steps=150, polish_rate=2e-3
)
"""The defaults."""

BANK = 8000
POLISHED = GuidanceSettings(
    resting=True, memory=24, mu=0.5, batch=64, joint_weight=1.0, bank_weight=0.75,
    robust_weight=0.5, robust_steps=1, robust_eps=0.1, polish_steps=300, polish_rate=0.03,
)  # fmt: skip
"""Polish against the basin: chosen on the gate split, at one seed."""

MNIST = "mnist"

Way = Callable[[], Chain]


class Table:
    """One seed: a vault, ways of making networks, a judge."""

    def __init__(self, seed: int, data: str, workers: int, task: str = MNIST) -> None:
        self.seed, self.path = seed, RESULTS / f"basins-{task}-seed{seed}.json"
        settings = settings_of(task, data).override(population__seed=seed)
        self.plain, self.polished = guidance_of(task, settings.guidance)
        vault = RUNS / (f"basins-{seed}" if task == MNIST else f"basins-{task}-{seed}")
        if not (vault / "generator.safetensors").exists():
            with (
                Defence.create(task, vault, settings) as made,
                show_progress() as progress,
                LocalEngine(workers) as engine,
            ):
                made.populate(engine, progress)
                made.fit(progress)
        # Read-only: several processes may measure rows of one vault.
        self.defence = Defence.open(vault, write=False, data=data)
        self.maker = Maker(self.defence, seed)
        with_bank = settings.override(generator__bank=BANK)
        entries = fitted_members(
            self.defence.vault.entries("member"), settings.autoencoder.newest_share
        )
        bank = bank_of(self.defence.task, self.defence.vault, with_bank, entries)
        self.maker.generator = replace(self.maker.generator, bank=bank)
        self.starts = Starts(self.maker)
        self.judge = Judge(self.defence.task, seed, Budget())
        self.record: dict[str, Any] = {"seed": seed, "rows": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text())

    def ways(self) -> dict[str, Way]:
        """Every row but the product's and the retrained ones, by name."""
        starts, maker, s = self.starts, self.maker, self.polished
        proposed = partial(starts.proposed, count=COUNT, known=KNOWN, proposals=PROPOSALS)
        chain = partial(starts.chain, count=COUNT, known=KNOWN)
        found: dict[str, Way] = {
            "frozen": lambda: Chain([maker.base] * (COUNT + 1)),
            "permuted": lambda: Chain(*maker.permutation(COUNT + 1)),
            "conditioned": lambda: Chain(*maker.conditioned(COUNT)),
            "selected": lambda: proposed("selected", settings=_selected(s)),
            "guided": lambda: proposed("guided", settings=replace(self.plain, polish_steps=0)),
            "defaults": lambda: proposed("defaults", settings=self.plain),
            "product": lambda: proposed("product", settings=s),
        }
        for name in FREE:
            start = getattr(starts, name)
            for rest in (False, True):
                label = f"{name}, resting" if rest else name
                found[label] = partial(
                    chain, label, start=start, resting=rest, proposals=4 * PROPOSALS
                )
            label = f"{name}, resting, polished"
            found[label] = partial(
                chain, label, start=start, resting=True, settings=s, proposals=PROPOSALS
            )
        return found

    def measure(self, name: str, way: Way) -> None:
        """Make and judge a row, unless it is there."""
        if name in self.record["rows"]:
            return
        made = way()
        known, targets = made.states[:KNOWN], made.states[KNOWN:]
        self.keep(name, made.cpu, known, targets, made.owner)

    def keep(
        self, name: str, cpu: float, known: Sequence[State], targets: Sequence[State],
        owner: Sequence[State] = (),
    ) -> None:  # fmt: skip
        """Judge a row and write it down."""
        began = time.process_time()
        row = self.judge(known, targets, owner)
        row |= {"cpu_seconds": cpu, "judged_seconds": time.process_time() - began}
        row["measured"] = hardware()
        if self.path.exists():  # another process may have measured another row meanwhile
            self.record = json.loads(self.path.read_text())
        self.record["rows"][name] = row
        save(self.path, self.record)
        print(f"[seed {self.seed}] {name}: {brief(row)}", flush=True)

    def retrained(self, name: str, harden: bool) -> None:
        """Train from scratch on the attacks of the exposures that guidance remembers."""
        if name in self.record["rows"]:
            return
        chain = self.starts.proposed(name, KNOWN - 1, self.plain)
        exposures = [
            self.maker.expose(state, number, self.plain)
            for number, state in enumerate(chain.states[-16:])
        ]
        states: list[State] = []
        spent = 0.0
        for index in range(RETRAINED):
            made, cpu = self.maker.retrained(
                exposures, False, index, self.defence.settings.population.base_steps, harden
            )
            states, spent = states + made, spent + cpu / RETRAINED
        self.keep(name, spent, chain.states, states)


def settings_of(task: str, data: str) -> Settings:
    """A task's own settings, with the generator that this table is about."""
    loaded = load_task(task, data)
    settings = build(Settings, defaults_of(loaded), f"settings of task '{task}'")
    settings = settings.override(generator__space="diffusion")
    return settings.override(task__name=task, task__data=data)


def guidance_of(task: str, own: GuidanceSettings) -> tuple[GuidanceSettings, GuidanceSettings]:
    """The product's guidance: by its defaults, and polished against the basin.

    The second was chosen on MNIST. Another task keeps its own sizes, weights and rates, and takes
    over what is new in it: basins in turn, all that the attacker has read, attacks on basins.
    """
    if task == MNIST:
        return PLAIN, POLISHED
    plain = replace(own, resting=False, joint_weight=0.0, bank_weight=0.0)
    return plain, replace(
        own, resting=True, memory=KNOWN, joint_weight=POLISHED.joint_weight,
        bank_weight=POLISHED.bank_weight, polish_steps=max(300, own.polish_steps),
    )  # fmt: skip


def _selected(s: GuidanceSettings) -> GuidanceSettings:
    """The best of 256 draws, basins in turn, and nothing after it."""
    return replace(
        s, particles=256, reverse_steps=0, latent_steps=0, polish_steps=0, resting=True,
        joint_weight=0.0, bank_weight=0.0,
    )  # fmt: skip


def brief(row: dict[str, Any]) -> str:
    """One line of a row."""
    keys = ("clean", "white_box", "last", "worst_16", "joint_16", "picked", "basins", "tries")
    means = [f"{key} {100 * mean(row[key]):.1f}" for key in keys]
    stayed = [100 * mean(row[f"{k}_stayed"]) for k in ("picked", "tries")]
    return (
        ", ".join(means)
        + f"; stayed {stayed[0]:.1f}, {stayed[1]:.1f}; {row['cpu_seconds']:.1f} CPU s"
    )


def parser(about: str) -> argparse.ArgumentParser:
    """Flags of whatever measures rows on these vaults."""
    made = argparse.ArgumentParser(description=about.splitlines()[0])
    made.add_argument("--data", default="", help="folder of the task's files")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--rows", nargs="+", default=None, help="some rows alone, by name")
    made.add_argument("--workers", type=int, default=0)
    return made


def picked(asked: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The rows that are asked for, or all.

    Raises:
        SystemExit: one of them is not known.
    """
    names = list(known)
    if unknown := set(asked or ()) - set(names):
        raise SystemExit(f"unknown rows: {', '.join(sorted(unknown))}; there are {names}")
    return list(asked or names)


def main() -> None:
    """Measure each seed."""
    flags = parser(__doc__)
    flags.add_argument("--task", default=MNIST, help="a built-in task")
    args = flags.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        table = Table(seed, args.data, args.workers, args.task)
        rows: dict[str, Callable[[], None]] = {
            **{n: partial(table.measure, n, way) for n, way in table.ways().items()},
            "retrained on attacks": partial(table.retrained, "retrained on attacks", False),
        }
        if table.defence.settings.population.light_eps:  # else its members are not hardened so
            rows["retrained, hardened"] = partial(table.retrained, "retrained, hardened", True)
        for name in picked(args.rows, rows):
            rows[name]()


if __name__ == "__main__":
    main()
