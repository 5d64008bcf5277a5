"""Does rotation wear out? The strongest stale attacker, after few rotations and after a thousand.

    python -m benchmarks.generation.curve --data ../shared/data/mnist --seeds 1

On the vaults of `benchmarks.generation.basins`, whose judge it is, too: the attacker has read the
first 5, 25, 100, 1,000 networks of one chain, and the ten after them are judged. A row that costs
nothing goes to a thousand; one that is polished (20 CPU seconds a network) to a hundred. *Unseen*:
every network that was read is of another basin than those that are judged. Networks are kept in
`runs/curve-<seed>`, points in benchmarks/results/curve-mnist-seed<seed>.json: a run goes on where
it stopped. A point takes three to five minutes of one core.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import commit, hardware, hold_to, save
from benchmarks.generation.basins import POLISHED, TARGETS, Table, brief, parser, picked
from benchmarks.generation.judge import Budget
from g2d.core.files import write_bytes
from g2d.core.types import State
from g2d.generator import Exposure
from g2d.settings import GuidanceSettings
from g2d.weights.checkpoints import pack, unpack

UNSEEN = "soup, its basin unseen"


@dataclass(frozen=True)
class Row:
    """A chain: how its networks are made, and after how many the attacker is asked.

    Attributes:
        settings: how each is polished; None: not at all. unseen: the judged networks are of a basin
            that none of those before them is of.
    """

    read: tuple[int, ...]
    settings: GuidanceSettings | None = None
    unseen: bool = False


ROWS = {
    "soup, resting": Row((5, 25, 100, 1000)),
    UNSEEN: Row((25,), unseen=True),
    "soup, resting, polished": Row((5, 25, 100), POLISHED),
}


class Curve:
    """One seed: its vault, its chains, its points."""

    def __init__(self, table: Table) -> None:
        self.table, self.starts, self.maker = table, table.starts, table.maker
        self.path = RESULTS / f"curve-mnist-seed{table.seed}.json"
        self.record: dict[str, Any] = {"seed": table.seed, "points": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text())
        hold_to(self.record, {"commit": commit(), "images": Budget().images}, self.path)

    def measure(self, name: str) -> None:
        """Make a chain as far as it is not made, and judge each of its points."""
        row = ROWS[name]
        for read in row.read:
            key = f"{name} @ {read}"
            if key in self.record["points"]:
                continue
            states, cpu = self.chain(name, row, read + TARGETS)
            began = time.process_time()
            found = self.table.judge(states[:read], states[read:])
            found |= {"row": name, "read": read, "cpu_seconds": cpu, "measured": hardware()}
            found["judged_seconds"] = time.process_time() - began
            if self.path.exists():  # another process may have measured another row meanwhile
                self.record = json.loads(self.path.read_text())
            self.record["points"][key] = found
            save(self.path, self.record)
            print(f"[seed {self.table.seed}] {key}: {brief(found)}", flush=True)

    def chain(self, name: str, row: Row, count: int) -> tuple[list[State], float]:
        """The first `count` networks, base included, and the mean CPU seconds of one."""
        states, spent = [self.maker.base], 0.0
        exposures: list[Exposure] = []
        for number in range(count - 1):
            state, cpu = self.network(name, row, number, count, states[-1], exposures)
            states.append(state)
            spent += cpu
        return states, spent / max(1, count - 1)

    def network(
        self, name: str, row: Row, number: int, count: int, last: State, exposures: list[Exposure]
    ) -> tuple[State, float]:
        """The network of one place, from its file if it has been made."""
        basins = self.starts.known
        basin = basins[number % len(basins)]
        if row.unseen:
            late = number >= count - 1 - TARGETS
            basin = basins[-1] if late else basins[number % (len(basins) - 1)]
        path = RUNS / f"curve-{self.table.seed}" / name.replace(", ", "-") / f"{number:04d}"
        began = time.process_time()
        if row.settings:
            exposures.append(self.maker.expose(last, number, row.settings))
            del exposures[: -row.settings.memory]
        if row.settings and path.exists():
            state = unpack(path.read_bytes())
            return state, float(path.with_suffix(".cpu").read_text())
        # A source for each place: a chain that was interrupted goes on as it would have gone.
        g = self.maker.source(f"curve, {name}, {number}")
        v = self.starts.soup(basin, g)
        if row.settings:
            v = self.starts.polished(v, list(exposures), row.settings, g)
        state = self.maker.generator.to_state(v)
        cpu = time.process_time() - began
        if row.settings:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".cpu").write_text(f"{cpu:.3f}")
            write_bytes(path, pack(state))
        return state, cpu


def main() -> None:
    """Measure each seed."""
    args = parser(__doc__).parse_args()
    wanted = picked(args.rows, ROWS)
    torch.set_num_threads(1)
    for seed in args.seeds:
        curve = Curve(Table(seed, args.data, args.workers))
        for name in wanted:
            curve.measure(name)


if __name__ == "__main__":
    main()
