"""Serving policies: what they cost who only asks, and whether finds work again, or on others.

    python -m benchmarks.monitoring.policies --data ../shared/data/mnist --seeds 0 1 2

Every row is one attacker against one policy, on the same images and networks; votes are attacked
with everything. `sticky-watched` is the whole loop: the monitor of queries sees every request, and
whom it sees is pinned. The vault is
`runs/policies-<seed>`, made first where it is not there (a quarter of an hour on two cores); with
`--vault` it is another one (`{seed}` stands for the seed), which is copied if it has too few
generations and never written to. Rows that are in
benchmarks/results/policies-<task>-seed<seed>.json are not measured again, so a run goes on where it
stopped (rows of other flags are refused, not mixed in); `--rows` picks some by a part of their
names. An hour or two of one core a seed; for a trial take `--images 10 --budget 200 --every 50`,
and another `--out`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.command import parser
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown
from benchmarks.monitoring.guards import guards_of
from benchmarks.monitoring.policies_tables import lines
from g2d import Defence, Settings, load_task
from g2d.cli.progress import show_progress
from g2d.core.engine import LocalEngine, SerialEngine
from g2d.core.seeds import seed_of
from g2d.redteam.chains import build_chains
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.policies.schemes import LIVE, WATCHED
from g2d.redteam.threats.policies import threat as policies
from g2d.redteam.threats.policies.searches import Searches
from g2d.settings import fields
from g2d.tasks.sizes import defaults_of

Row = dict[str, Any]

SIZES = ("vault", "generations", "images", "watched_images", "budget", "every", "live", "steps",
         "eps")  # fmt: skip
"""Arguments that decide what a row says."""


class Policies:
    """The vault of one seed, and the rows that are measured on it."""

    def __init__(self, given: Namespace, seed: int) -> None:
        self.given, self.seed = given, seed
        self.path = given.out / f"policies-{given.task}-seed{seed}.json"
        self.record: Row = {"seed": seed, "rows": {}}
        self._read()
        self.context = AttackContext(self._spec())

    def _read(self) -> None:
        """Take up what is there; rows of other settings are refused."""
        if self.path.exists():
            self.record = json.loads(self.path.read_text("utf-8"))
        hold_to(self.record, {name: getattr(self.given, name) for name in SIZES}, self.path)

    # --- networks ----------------------------------------------------------------------------

    def _vault(self) -> Path:
        """A vault with enough generations: the given one, a copy of it, or one of its own."""
        given, own = self.given, self.given.runs / f"policies-{self.seed}"
        if given.vault:
            found = Path(given.vault.format(seed=self.seed)).absolute()
            with Defence.open(found, write=False, data=given.data) as defence:
                if len(defence.vault.numbers(1)) >= given.generations:
                    return found
            own = given.runs / f"policies-{self.seed}-{found.name}"
            if not own.exists():
                half = own.with_name(f"{own.name}.half")
                shutil.rmtree(half, ignore_errors=True)
                shutil.copytree(found, half)
                for path in (half, *half.rglob("*")):  # open to others a vault is refused
                    path.chmod(0o700 if path.is_dir() else 0o600)
                half.rename(own)
        self._filled(own)
        return own

    def _filled(self, folder: Path) -> None:
        """Make what a vault of ours lacks: population, generator, generations."""
        given = self.given
        if given.vault:
            made = Defence.open(folder, data=given.data)
        else:
            task = load_task(given.task, given.data)
            settings = fields.build(Settings, defaults_of(task), given.task, stored=True)
            settings = settings.override(
                task__name=given.task, task__data=given.data, population__seed=self.seed
            )
            made = Defence.create(given.task, folder, settings)
        with made as defence, show_progress() as progress, self._engine() as engine:
            defence.populate(engine, progress)
            defence.fit(progress)
            while (there := len(defence.vault.numbers(1))) < given.generations:
                defence.generate(seed=seed_of(self.seed, "generation", there))
                progress("generations", there + 1, given.generations)

    def _engine(self) -> Any:
        return SerialEngine() if self.given.workers == 1 else LocalEngine(self.given.workers)

    def _spec(self) -> RunSpec:
        given, vault = self.given, self._vault()
        with (
            Defence.open(vault, write=False, data=given.data) as defence,
            show_progress() as progress,
            self._engine() as engine,
        ):
            spec = RunSpec(
                source=defence.source, vault=str(vault), settings=defence.settings,
                n=given.images, eps=given.eps or defence.task.eps,
                seed=self.seed, quick=given.images < 20, attack=defence.task.attack_kind,
            )  # fmt: skip
            votes = any(self._wants(f"{policies.VOTE}, vote-{k}, scores") for k in (3, 5))
            names = {"attacker"} if votes else set[str]()
            folder = given.runs / f"policies-{self.seed}-networks"
            chains = build_chains(defence, spec, folder, engine, names, progress)
        kept = {name: chains[name] for name in ("generated", "attacker") if name in chains}
        return RunSpec(**{**vars(spec), "chains": kept})

    def _wants(self, name: str) -> bool:
        """Whether a row is asked for."""
        return self.given.rows is None or any(part in name for part in self.given.rows)

    # --- rows --------------------------------------------------------------------------------

    def rows(self) -> Mapping[str, Callable[[], list[Row]]]:
        """Every row by name, in the order in which they are measured."""
        given = self.given
        size = {"images": given.images, "budget": given.budget, "every": given.every,
                "live": given.live, "steps": given.steps}  # fmt: skip
        found: dict[str, Callable[[], list[Row]]] = {}
        for case in policies.cases_of(self.context.spec, size):
            found[name_of(case)] = partial(self.attacked, case)
        size |= {"images": min(given.images, given.watched_images)}
        for case in policies.searches_of(self.context.spec, WATCHED, size):
            found[name_of(case)] = partial(self.attacked, case)
        return found

    def attacked(self, case: Case) -> list[Row]:
        """A case's rows as the red team writes them."""
        began = time.process_time()
        if case.option("scheme") == WATCHED:
            model = self.context.model(self.context.chain("generated").networks[-1])
            guards = partial(guards_of, self.context, model)
            rows = Searches(case, self.context, guards).rows()
        else:
            rows = policies.run(case, self.context)
        seconds = (time.process_time() - began) / max(1, len(rows))
        kept = [row.as_json(policies.THREAT.ids) | {"seconds": seconds} for row in rows]
        plain: list[Row] = json.loads(json.dumps(kept, allow_nan=False))
        return plain

    def measure(self) -> None:
        """Measure every row that is not there, and keep each as soon as it is."""
        for name, row in self.rows().items():
            if name in self.record["rows"] or not self._wants(name):
                continue
            found = row()
            self._read()  # another process may have measured another row meanwhile
            self.record["rows"][name] = found
            self.record["measured"] = record(self.given)
            save(self.path, self.record)
            print(f"[seed {self.seed}] {name}: {brief(found)}", flush=True)


def name_of(case: Case) -> str:
    """A case's key: who attacks what, told in which form."""
    return f"{case.name}, {case.option('scheme')}, {case.option('answers')}"


def brief(found: list[Row]) -> str:
    """One line of a case's rows."""
    return ", ".join(
        f"{row['metric']} {100 * row['value']['value']:.1f}" if row["value"] else row["status"]
        for row in found
    )


def flags() -> ArgumentParser:
    """What the command takes."""
    found = parser(__doc__)
    found.add_argument("--task", default="mnist")
    found.add_argument("--data", default="", help="folder of MNIST's idx files")
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--vault", default="", help="an existing vault; {seed}: the seed")
    found.add_argument("--generations", type=int, default=30, help="that the vault has at least")
    found.add_argument("--images", type=int, default=100, help="attackers of each search")
    found.add_argument("--watched-images", type=int, default=40, help="where a monitor watches")
    found.add_argument("--budget", type=int, default=5000, help="queries of one image")
    found.add_argument("--every", type=int, default=1000, help="queries between rotations")
    found.add_argument("--live", type=int, default=LIVE, help="generations live at once")
    found.add_argument("--steps", type=int, default=100, help="gradient steps against a vote")
    found.add_argument("--eps", type=float, default=0.2, help="0: the task's own")
    found.add_argument("--rows", nargs="+", default=None, help="some rows, by a part of the name")
    found.add_argument("--workers", type=int, default=0, help="1: none but this process")
    found.add_argument("--runs", type=Path, default=RUNS)
    found.add_argument("--out", type=Path, default=RESULTS)
    return found


def main() -> None:
    """Measure, keep, print."""
    given = flags().parse_args()
    given.data = str(Path(given.data).absolute()) if given.data else ""
    given.runs = given.runs.absolute()
    given.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    records = []
    for seed in given.seeds:
        measured = Policies(given, seed)
        measured.measure()
        records.append(measured.record["rows"])
    print(markdown(TARGETS, lines(records)))


if __name__ == "__main__":
    main()
