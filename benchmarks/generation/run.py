"""Evidence for generation: every way of making the next parameters, side by side.

    python -m benchmarks.generation --data ../shared/data/mnist --seeds 0 1 2

needs the four MNIST idx files. Each seed is its own population, chain and controls, about 35 CPU
minutes; rows that are in the seed's JSON are not measured again, so the run can be interrupted.
Writes benchmarks/results/generation-mnist-seed*.json; `benchmarks/tables.py` makes the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import g2d
from benchmarks.common.measure import (
    PeakMemory,
    function_columns,
    mean_iou,
    stale,
    white_box,
    wrong,
)
from benchmarks.common.places import RESULTS
from benchmarks.common.results import hardware, save
from benchmarks.generation.ways import Made, Maker
from g2d.core.types import State
from g2d.redteam.novelty import MARGIN, TAUS, Distances, share_novel
from g2d.redteam.scoring import Trial
from g2d.settings import Settings
from g2d.weights.checkpoints import unpack

HISTORY = 16
CHAIN = 40
TARGETS = 5  # of the guided chain: its last TARGETS · STRIDE rotations, every STRIDE-th
STRIDE = 3
Progress = Callable[[str, int, int], None]


class Seed:
    """One seed's run: a vault, a workshop, and rows that are measured once.

    Attributes:
        budgets: eps of the attacks. examples: how many single attacks are scored on, and joint
            ones. targets: of the guided chain.
    """

    budgets: Sequence[float] = (0.1, 0.2)
    examples: tuple[int, int] = (1000, 500)
    targets: int = TARGETS

    def __init__(self, seed: int, data: str, out: Path, work: Path) -> None:
        self.begin(seed, out / f"generation-mnist-seed{seed}.json")
        settings = Settings().override(task__name="mnist", task__data=data, population__seed=seed)
        self.settings = settings
        self.defence = g2d.Defence.create("mnist", work / f"mnist-{seed}", settings)
        self.task = self.defence.task

    def begin(self, seed: int, path: Path) -> None:
        """Go on with what is in the seed's file."""
        self.seed, self.path = seed, path
        self.record: dict[str, Any] = {"seed": seed, "hardware": hardware(), "rows": {}}
        if path.exists():
            self.record = json.loads(path.read_text())

    def note(self, key: str, value: Any) -> None:
        """Keep one result."""
        self.record[key] = value
        save(self.path, self.record)

    def build(self, only_population: bool) -> None:
        """Population, autoencoder, diffusion; each timed."""
        stages = {"population": self.defence.populate, "fit": self.defence.fit}
        for name, step in list(stages.items())[: 1 if only_population else 2]:
            began = time.perf_counter()
            with PeakMemory() as memory:
                step(progress=plain_progress(self.seed))
            seconds = time.perf_counter() - began
            if f"{name}_seconds" not in self.record:
                self.note(f"{name}_seconds", round(seconds, 1))
                self.note(f"{name}_peak_mib", round(memory.mib))

    def prepare(self) -> None:
        """Models and distances that every row uses."""
        self.shop = Maker(self.defence, self.seed)
        self.distances = Distances(self.shop.members, self.defence._judge.chain)
        self.member_models = [self.shop.model(state) for state in self.shop.members]
        base = self.shop.model(self.shop.base)
        self.test = self.task.splits.test
        some, few = self.examples
        self.trials = {eps: (self._trial(eps, some), self._trial(eps, few)) for eps in self.budgets}
        columns = function_columns([base], [], self.test)
        self.base_accuracy = columns["clean_mean"]
        if "base" not in self.record:
            errors = [wrong(model, self.test) for model in self.member_models[:20]]
            self.note("base", columns)
            self.note("members", {
                **function_columns(self.member_models, self.member_models, self.test),
                "iou_wrong": mean_iou(errors), "leave_one_out_median": self.distances.unit,
                "parameters": self.defence.generator.codec.size,
            })  # fmt: skip

    def waves(self) -> None:
        """How the population deepens: accuracy, stale and white-box ASR of each wave's members."""
        if "waves" in self.record:
            return
        entries = self.defence.vault.entries("member")
        basins, trial = self.settings.population.basins, self._trial(self.task.eps, 300)
        found = []
        for first in range(0, len(entries) - basins + 1, basins):
            wave = entries[first : first + basins]
            models = [self.shop.model(unpack(self.defence.vault.read(e))) for e in wave]
            proposed = [trial.craft(model, "wave", i) for i, model in enumerate(models)]
            rates = [[trial.score(model, x).value for x in proposed] for model in models]
            own = [rates[i][i] for i in range(basins)]
            others = [r for i, row in enumerate(rates) for j, r in enumerate(row) if i != j]
            clean = function_columns(models, [], self.test)["clean_mean"]
            found.append({"clean": clean, "stale": statistics.mean(others),
                          "white_box": statistics.mean(own)})  # fmt: skip
        self.note("waves", found)

    def _trial(self, eps: float, n: int) -> Trial:
        full = Trial.of(self.task, n, steps=20, seed=self.seed)
        return Trial(full.split, eps, full.bounds, full.steps, full.seed)

    def row(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Measure a row unless it is there."""
        if name in self.record["rows"]:
            return
        began = time.perf_counter()
        row = make()
        row["seconds"] = round(time.perf_counter() - began, 1)
        self.record["rows"][name] = row
        save(self.path, self.record)
        print(f"[seed {self.seed}] {name}: {brief(row)}", flush=True)

    def measured(
        self, states: Sequence[State], cpu: float, targets: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Any]:
        """All columns of a sequence of networks, oldest first.

        `targets`: (position, first position of its history); by default the last one.
        """
        models = [self.shop.model(state) for state in states]
        targets = targets or [(len(states) - 1, 0)]
        judged = [models[t] for t, _ in targets]
        row: dict[str, Any] = {"cpu_seconds": cpu, "networks": len(states), "targets": len(targets)}
        for eps, (trial, joint) in self.trials.items():
            found = [
                stale(models[t], models[first:t], trial, joint, worst=eps == self.task.eps)
                | {"white_box": white_box(models[t], trial)}
                for t, first in targets
            ]
            row[f"eps_{eps}"] = {k: statistics.mean(f[k] for f in found) for k in found[0]}
            row[f"eps_{eps}_each"] = found
        sample = list(states)[-40:]
        return row | self.shape(sample, states, judged)

    def shape(
        self, sample: Sequence[State], states: Sequence[State], judged: Sequence[Any]
    ) -> dict[str, Any]:
        """Accuracy, distances and novelty of a sample of networks."""
        models = [self.shop.model(state) for state in sample]
        near = [self.distances.nearest(state) for state in sample]
        columns = function_columns(models, [self.member_models[i] for _, i in near], self.test)
        bar, unit = self.base_accuracy - MARGIN, self.distances.unit
        found = [(d, a) for (d, _), a in zip(near, columns["clean_each"], strict=True)]
        novelty = {str(tau): share_novel(found, bar, unit, tau) for tau in TAUS}
        exposed = Distances(list(states)[-HISTORY - 1 : -1], self.defence._judge.chain)
        return columns | {
            "member_distance": statistics.mean(d for d, _ in near),
            "member_distance_each": [d for d, _ in near],
            "exposed_distance": exposed.nearest(states[-1])[0],
            "novelty": novelty,
        }

    # --- the rows ---

    def controls(self) -> None:
        """Rows without a memory: 17 networks, the last attacked through the 16 before it."""
        n, many = HISTORY + 1, 40
        shop = self.shop
        # Copies of one function: a joint attack on sixteen of them is the single one.
        self.row("frozen", lambda: self.measured([shop.base] * 2, 0.0))
        ways: dict[str, tuple[Callable[[int], Made], int]] = {
            "pure permutation": (shop.permutation, 2),
            "forks": (shop.forks, n),
            "independent seeds": (shop.seeds, 9),
            "noise on a member": (shop.noise, many),
            "interpolation": (shop.interpolation, many),
            "soup": (shop.soup, many),
            "Gaussian in latent space": (shop.gaussian, many),
            "diffusion unguided": (shop.unguided, many),
            "diffusion unguided, wide": (shop.wide, many),
            "diffusion conditioned": (shop.conditioned, many),
            "diffusion guided": (shop.guided, n),
        }
        for name, (way, count) in ways.items():
            self.row(name, lambda way=way, count=count: self.measured(*way(count)))  # type: ignore[misc]

    def product(self) -> None:
        """Guided + polish through the product itself, gates and all: a chain of rotations."""
        for target in range(10, CHAIN + 1, 10):
            missing = target + 1 - self.defence.vault.exposures()[-1]
            if missing > 0:
                self.defence.generate(missing, seed=self.seed)
                print(f"[seed {self.seed}] chain {target} of {CHAIN}", flush=True)
        self.row("guided + polish", self._chain_row)
        p = self.settings.population
        self.row("retrained", lambda: self._rivals(p.base_steps))
        self.row("retrained fork", lambda: self._rivals(p.fork_steps, fork=True))
        if self.seed > 1:
            return  # two seeds tell enough of rows that cost minutes each
        # The rival must not be dearer than it needs to be, nor go without what members have.
        self.row("retrained, 938 steps", lambda: self._rivals(938, count=1))
        self.row("retrained, hardened", lambda: self._rivals(p.base_steps, count=1, harden=True))

    def _chain_row(self) -> dict[str, Any]:
        numbers = list(range(1, CHAIN + 2))
        generations = [self.defence.generation(n) for n in numbers]
        states = [g.state for g in generations]
        spent = [g.manifest["cpu_seconds"] for g in generations[1:]]
        last = len(states) - 1
        targets = [(last - i * STRIDE, last - i * STRIDE - HISTORY) for i in range(self.targets)]
        row = self.measured(states, statistics.mean(spent), targets)
        models = [self.shop.model(state) for state in states[1:]]
        whole = function_columns(models, [], self.test)
        rejected = self.defence.vault.rejections()
        return row | {
            "clean_mean": whole["clean_mean"], "clean_worst": whole["clean_worst"],
            "clean_each": whole["clean_each"], "rejected": len(rejected),
            "reasons": [r["reasons"] for r in rejected],
            "cpu_seconds_each": spent,
        }  # fmt: skip

    def _rivals(
        self, steps: int, fork: bool = False, count: int = 2, harden: bool = False
    ) -> dict[str, Any]:
        """Retraining on the pools of the chain's last 16 generations; the same attacks judge."""
        numbers = self.defence.vault.exposures()[-HISTORY - 1 : -1]
        history = [self.defence.generation(n).state for n in numbers]
        exposures = [self.defence.exposure(n) for n in numbers]
        rows = []
        for index in range(count):
            states, cpu = self.shop.retrained(exposures, fork, index, steps, harden)
            rows.append(self.measured([*history, *states], cpu))
            rows[-1] |= self.shape(states, [*history, *states], [])
        merged = rows[0] | {
            key: statistics.mean(r[key] for r in rows)
            for key in ("cpu_seconds", "clean_mean", "member_distance", "exposed_distance")
        }
        merged["clean_worst"] = min(r["clean_worst"] for r in rows)
        for eps in self.trials:
            each = [r[f"eps_{eps}"] for r in rows]
            merged[f"eps_{eps}"] = {k: statistics.mean(e[k] for e in each) for k in each[0]}
            merged[f"eps_{eps}_each"] = each
        return merged | {"steps": steps, "each": [r["clean_mean"] for r in rows]}

    def sweep(self) -> None:
        """White-box ASR of the last generation as eps grows: short of 100 % it is masked."""
        if "sweep" in self.record:
            return
        model = self.defence.generation().model()
        found = {}
        for eps in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
            trial = dataclasses.replace(self._trial(eps, 300), steps=40)
            found[str(eps)] = white_box(model, trial)
        patient = dataclasses.replace(self._trial(0.2, 300), steps=100)
        self.note("sweep", {"white_box": found, "white_box_100_steps": white_box(model, patient)})

    def collapse(self) -> None:
        """300 unguided samples: how many fall under 90 %."""

        def one() -> dict[str, Any]:
            states, cpu = self.shop.unguided(300)
            models = [self.shop.model(state) for state in states]
            clean = function_columns(models, [], self.test.take(range(2000)))["clean_each"]
            return {"collapsed": sum(a < 0.9 for a in clean), "clean_each": clean, "cpu": cpu}

        self.row("collapse", one)


def brief(row: dict[str, Any]) -> str:
    """One line of a row."""
    text = ""
    budgets = [key for key in row if key.startswith("eps_") and not key.endswith("_each")]
    if budgets:
        text = ", ".join(f"{k} {v:.1%}" for k, v in row[budgets[-1]].items())
        text += f"; clean {row['clean_mean']:.2%}, worst {row['clean_worst']:.2%}"
        text += f"; novelty {row['novelty']}; {row['cpu_seconds']:.2f} CPU s"
    return text or f"{row.get('collapsed')} collapsed"


def plain_progress(seed: int) -> Progress:
    """Print each stage at every tenth."""

    def tell(stage: str, done: int, total: int) -> None:
        if total and (done == total or done % max(1, total // 10) == 0):
            print(f"[seed {seed}] {stage} {done}/{total}", flush=True)

    return tell


def main() -> None:
    """Run the seeds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the MNIST idx files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only-population", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where vaults are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        run = Seed(seed, options.data, options.out, options.work)
        run.build(options.only_population)
        if options.only_population:
            run.defence.close()
            continue
        run.prepare()
        run.waves()
        run.product()
        run.collapse()
        run.sweep()
        run.controls()
        run.defence.close()


if __name__ == "__main__":
    main()
