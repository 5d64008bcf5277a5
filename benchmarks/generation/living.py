"""A living population: each k-th rotation begins in a basin that was grown after all were exposed.

    python -m benchmarks.generation.living --data ../shared/data/mnist --seeds 0 --every 1 4

The product itself, gates included: `g2d grow` as a function, then `g2d generate`, with soups as
they are drawn (no polish, so that a row stands beside *soup* of `.basins` and `.curve`). First all
basins of the population are used, then each k-th rotation waits for a new one; those between begin
where the exposure lies farthest back. The attacker is that of `benchmarks.generation.basins`: he
has read the first 24 networks of the chain, and the ten after them are judged. Populations are
those of `runs/basins-<seed>`, each row's vault is `runs/living-<seed>-<k>`, and a run goes on where
it stopped, in the middle of a basin too. A basin is twice the base's training by its steps, so
k = 1 takes hours of one core and k = 4 a quarter of that; `--members 4` makes smaller ones. Rows:
benchmarks/results/living-mnist-seed<seed>.json.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import commit, hardware, hold_to, save
from benchmarks.generation.basins import KNOWN, RETRAINED, TARGETS, Table, brief, parser, picked
from benchmarks.generation.judge import Budget
from benchmarks.generation.ways import Maker
from g2d import Defence, Settings
from g2d.cli.progress import show_progress
from g2d.core.types import State
from g2d.defence.growing import Grow, grow, take_up_basin
from g2d.defence.refresh import follow
from g2d.tasks.task import Task
from g2d.vault.basin_costs import basin_costs
from g2d.vault.basins import BASIN, stock_of
from g2d.vault.vault import Vault

COUNT = KNOWN + TARGETS - 1  # networks after the base
REMEMBERED = 16  # exposures whose attacks a retraining learns

SOUPS = {
    "generator__space": "soup", "guidance__resting": True, "guidance__latent_steps": 0,
    "guidance__polish_steps": 0,
}  # fmt: skip
"""The product's sampler as it is drawn; everything else is the default."""


def due(number: int, first: int, every: int) -> bool:
    """Whether a rotation, the first one after the base being 0, is to begin in a new basin.

    Args:
        first: how many basins the population has, which come before all that are grown.
    """
    return number >= first and (number - first) % every == 0


def rows_beside(vault: Vault) -> list[bool]:
    """For each generation after the base whether nobody had seen its basin when it went live."""
    seen: set[Any] = set()
    found = []
    for number in vault.exposures()[1:]:
        basin = vault.generation(number).manifest.get(BASIN)
        found.append(basin not in seen)
        seen.add(basin)
    return found


def run(defence: Defence, every: int, count: int, members: int) -> Defence:
    """Rotate a vault until `count` generations followed its base; each k-th in a new basin."""
    first = defence.settings.population.basins
    while (number := len(defence.vault.exposures()) - 1) < count:
        if due(number, first, every) and not stock_of(defence.vault).unseen:
            with show_progress() as progress:
                grow(defence, Grow(progress, print, members))
            taken = take_up_basin(defence.vault)
            assert taken is not None, "it was grown here, and no refresh waits"
            defence = follow(defence)
        defence.generate(1)
    return defence


class Living:
    """One seed: a vault for each row, the judge of the other tables, a record."""

    def __init__(self, table: Table, members: int) -> None:
        self.table, self.members = table, members
        self.path = RESULTS / f"living-mnist-seed{table.seed}.json"
        self.record: dict[str, Any] = {"seed": table.seed, "rows": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text())
        sizes = {"commit": commit(), "images": Budget().images, "members": members}
        hold_to(self.record, sizes, self.path)

    def chain(self, every: int) -> tuple[list[State], list[bool], dict[str, Any]]:
        """The base and the networks after it, whether each was of a new basin, and what they cost.

        Goes on where an earlier run stopped.
        """
        path = RUNS / f"living-{self.table.seed}-{every}"
        settings = self.table.defence.settings.override(**SOUPS)
        with seeded(self.table.defence, path, settings) as defence:
            last = run(defence, every, COUNT, self.members)
            numbers = last.vault.exposures()[: COUNT + 1]
            states: list[State] = [last.generation(number).state for number in numbers]
            costs = basin_costs(last.vault)
            assert costs is not None, "the chain is longer than the population has basins"
            told = {**vars(costs), "each_fresh": costs.each_fresh, "amortised": costs.amortised}
            return states, rows_beside(last.vault)[:COUNT], told

    def measure(self, every: int) -> None:
        """Make and judge the row of a chain, unless it is there."""
        name = f"every {every}"
        if name in self.record["rows"]:
            return
        states, fresh, costs = self.chain(every)
        more = {"every": every, "fresh": [False, *fresh][KNOWN:], "costs": costs}
        self.keep(name, states[:KNOWN], states[KNOWN:], costs["amortised"], more)

    def retrained(self, every: int) -> None:
        """Train from scratch, plainly, on the attacks of what one chain has exposed, and judge."""
        name = f"retrained beside every {every}"
        if name in self.record["rows"]:
            return
        known = self.chain(every)[0][:KNOWN]
        maker = Maker(self.table.defence, self.table.seed)
        guidance = self.table.defence.settings.guidance
        exposures = [
            maker.expose(state, number, guidance)
            for number, state in enumerate(known[-REMEMBERED:])
        ]
        made = [
            maker.retrained(
                exposures, False, index, self.table.defence.settings.population.base_steps
            )
            for index in range(RETRAINED)
        ]
        states = [state for one, _ in made for state in one]
        self.keep(name, known, states, sum(cpu for _, cpu in made) / RETRAINED, {"every": every})

    def keep(
        self, name: str, known: Sequence[State], targets: Sequence[State], cpu: float,
        more: dict[str, Any],
    ) -> None:  # fmt: skip
        """Judge a row and write it down."""
        began = time.process_time()
        row = self.table.judge(known, targets) | more
        row |= {"cpu_seconds": cpu, "judged_seconds": time.process_time() - began}
        row["measured"] = hardware()
        if self.path.exists():  # another process may have measured another row meanwhile
            self.record = json.loads(self.path.read_text())
        self.record["rows"][name] = row
        save(self.path, self.record)
        print(f"[seed {self.table.seed}] {name}: {brief(row)}", flush=True)


def seeded(like: Defence, path: Path, settings: Settings) -> Defence:
    """A vault with another's population, and a generator by these settings; or that very vault.

    Not a copy of the folder: one vault under two names is refused where it is written.
    """
    task: Task | str = settings.task.name
    made = Defence.create(task, path, settings)
    for kind in ("base", "early", "member"):
        have = {entry.index for entry in made.vault.entries(kind)}
        for entry in like.vault.entries(kind):
            if entry.index not in have:
                files = {name: like.vault.read(entry, name) for name in entry.files}
                made.vault.put(kind, entry.index, files, entry.info)
    made.fit()
    return made


def main() -> None:
    """Measure each seed."""
    flags = parser(__doc__)
    flags.add_argument("--every", type=int, nargs="+", default=[1, 4], help="k, one chain each")
    flags.add_argument("--members", type=int, default=0, help="of each basin; 0: the product's")
    args = flags.parse_args()
    if min(args.every) < 1:
        raise SystemExit(f"--every {min(args.every)}: a rotation comes once in 1 or more")
    torch.set_num_threads(1)
    for seed in args.seeds:
        living = Living(Table(seed, args.data, args.workers), args.members)
        rows = {f"every {k}": partial(living.measure, k) for k in args.every}
        rows |= {f"retrained beside every {k}": partial(living.retrained, k) for k in args.every}
        for name in picked(args.rows, rows):
            rows[name]()


if __name__ == "__main__":
    main()
