"""What squares cost: accuracy against ReLU's, and what stale and white-box attacks do to both.

    python -m benchmarks.confidential.accuracy --data ../shared/data/mnist --seeds 0 1 2

A seed trains a few networks of `mnist-he` and as many of its ReLU twin by the population's base
recipe, approximates each of the twins by polynomials (lossy), and makes a small population of both
kinds by the same settings, from which generations rotate; the last of these are attacked. Goes on
where it stopped: vaults lie in runs/confidential-TASK-SEED-KIND, rows that stand in
benchmarks/results/confidential-accuracy-TASK-seedSEED.json are not measured again. A seed takes
about 20 CPU minutes of one core. `--task digits` tries everything out in two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from benchmarks.common.command import parser
from benchmarks.common.measure import stale, white_box
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import commit, hardware, hold_to, save
from benchmarks.common.tables import NOTHING, TARGETS, markdown, mean, shown
from g2d import Defence, load_task
from g2d.core.engine import SerialEngine
from g2d.core.seeds import seed_of
from g2d.redteam.scoring import Trial, accuracy_rate
from g2d.settings import Settings, build
from g2d.tasks.networks import mnist_he_cnn
from g2d.tasks.polynomials import approximate
from g2d.tasks.sizes import defaults_of
from g2d.tasks.task import Task
from g2d.training.loop import Batches
from g2d.training.recipes import HardenedTraining

SQUARE, RELU = "square", "relu"
KINDS = (SQUARE, RELU)
NAME = "confidential-accuracy"
PATTERN = "confidential-accuracy-{task}-seed{seed}.json"
_HISTORY = 8  # networks that a joint attack is crafted on

Row = dict[str, Any]


def mnist_relu_cnn() -> nn.Module:
    """The twin of `mnist-he`: the same layers, ReLU between them."""
    return mnist_he_cnn(nn.ReLU)


def tasks(task: str, data: str) -> dict[str, Task]:
    """The task of each kind: one architecture, but for what stands between its layers."""
    squares = load_task(f"{task}-he", data)
    if task == "digits":
        return {SQUARE: squares, RELU: load_task("digits")}
    return {SQUARE: squares, RELU: replace(squares, name="mnist-relu", factory=mnist_relu_cnn)}


class Seed:
    """One seed: its networks, its two vaults, and rows that are measured once."""

    def __init__(self, seed: int, given: argparse.Namespace) -> None:
        self.seed, self.given = seed, given
        self.tasks = tasks(given.task, given.data)
        self.path = given.out / PATTERN.format(task=given.task, seed=seed)
        self.record: dict[str, Any] = {"seed": seed, "rows": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text())
        sizes = ("members", "basins", "generations", "networks", "images", "base_steps")
        hold_to(self.record, {name: getattr(given, name) for name in sizes}, self.path)

    def measure(self) -> None:
        """Every row that is not there."""
        for kind in KINDS:
            for number in range(self.given.networks):
                self._row(f"trained, {kind}, {number}", partial(self._trained, kind, number))
        for kind in KINDS:
            self._row(f"rotated, {kind}", partial(self._rotated, kind))

    def _row(self, name: str, make: Callable[[], Row]) -> None:
        if name in self.record["rows"]:
            return
        began = time.process_time()
        row = make()
        row |= {"cpu_seconds": round(time.process_time() - began, 1), "commit": commit()}
        self.record["rows"][name] = row
        self.record["measured"] = hardware()
        save(self.path, self.record)
        told = {key: round(value, 4) for key, value in row.items() if isinstance(value, float)}
        print(f"[seed {self.seed}] {name}: {told}", flush=True)

    def _trained(self, kind: str, number: int) -> Row:
        """One network by the base's recipe; of ReLU what is left of it as polynomials, too."""
        task, settings = self.tasks[kind], self._settings(kind)
        seed, p = seed_of(self.seed, "twin", number) % 2**31, settings.population
        model, draws = task.model(seed), torch.Generator().manual_seed(seed)
        batches = Batches(task, task.splits.train, p.batch, draws)
        training = HardenedTraining(
            task, settings.harden, batches, p.base_steps, seed=seed, begun=False
        )
        training.run(model, p.rate)
        row: Row = {"clean": accuracy_rate(model, task.splits.test).value}
        if kind == RELU:
            guide = task.splits.guide.x[: self.given.images]
            found = approximate(model, guide, judged=task.splits.test)
            row |= {"approximated": found.accuracy, "agreement": found.agreement}
        return row

    def _rotated(self, kind: str) -> Row:
        """A population and a chain of generations; its last ones under attack."""
        vault = self.given.runs / f"confidential-{self.given.task}-{self.seed}-{kind}"
        task = self.tasks[kind]
        with Defence.build(task, vault, self._settings(kind), engine=SerialEngine()) as defence:
            missing = 1 + self.given.generations - len(defence.vault.exposures())
            if missing > 0:
                defence.generate(missing, seed=self.seed)
            numbers = defence.vault.exposures()
            models = [defence.generation(number).model() for number in numbers]
            spent = [defence.generation(n).manifest["cpu_seconds"] for n in numbers[1:]]
            rejected = len(defence.vault.rejections())
        full = Trial.of(task, self.given.images, seed=self.seed)
        half = replace(full, split=full.split.take(range(max(1, len(full.split) // 2))))
        targets = range(max(1, min(_HISTORY, len(models) - 1)), len(models))[-3:]
        found = [
            stale(models[place], models[:place], full, half, worst=False)
            | {
                "white_box": white_box(models[place], full),
                "clean": accuracy_rate(models[place], task.splits.test).value,
            }
            for place in targets
        ]
        whole = {key: mean([one[key] for one in found]) for key in found[0]}
        return whole | {"each": found, "rejected": rejected, "seconds_each": mean(spent)}

    def _settings(self, kind: str) -> Settings:
        """The squares' own settings, smaller; the same for both kinds."""
        task, s = self.tasks[SQUARE], self.given
        settings = build(Settings, defaults_of(task), f"settings of task {task.name!r}")
        settings = settings.override(
            generator__space="soup", population__members=s.members, population__basins=s.basins,
            population__seed=self.seed, population__base_steps=s.base_steps or None,
            task__data=s.data if s.task != "digits" else None,
        )  # fmt: skip
        return settings.override(task__name=self.tasks[kind].name)


def rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Lines of the table, of all seeds that have them; a seed counts once."""
    trained = [_trained_of(result) for result in results]
    apart = [one["square"] - one["relu"] for one in trained if one.keys() >= {"square", "relu"}]
    lines = [
        ("accuracy of `mnist-he`", "", _percent([one.get(SQUARE) for one in trained])),
        ("accuracy of its ReLU twin", "", _percent([one.get(RELU) for one in trained])),
        ("difference in points", "≥ -0.1", shown(apart, 2)),
        (
            "ReLU, approximated afterwards (lossy)", "",
            _percent([one.get("approximated") for one in trained]),
        ),
    ]  # fmt: skip
    titles = {
        "clean": "accuracy of generations",
        "last": "stale ASR, last generation read",
        "joint_8": "stale ASR, joint attack on 8 read",
        "white_box": "white-box ASR",
    }
    for key, title in titles.items():
        parts = [
            _percent([result["rows"].get(f"rotated, {kind}", {}).get(key) for result in results])
            for kind in KINDS
        ]
        lines.append((f"{title}: squares / ReLU", "", " / ".join(parts)))
    return lines


def _trained_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Means over a seed's trained networks."""
    found: dict[str, float] = {}
    for kind in KINDS:
        own = [row for name, row in result["rows"].items() if name.startswith(f"trained, {kind},")]
        if own:
            found[kind] = mean([row["clean"] for row in own])
        if own and kind == RELU:
            found["approximated"] = mean([row["approximated"] for row in own])
    return found


def made(folder: Path = RESULTS) -> dict[str, str]:
    """The block of docs/confidential.md, of all seeds of MNIST, by the name of its mark."""
    paths = folder.glob(PATTERN.format(task="mnist", seed="*"))
    found = sorted((json.loads(p.read_text("utf-8")) for p in paths), key=lambda one: one["seed"])
    if not found:
        name = PATTERN.format(task="mnist", seed="*")
        return {NAME: markdown(TARGETS, [(f"`{name}`", NOTHING, "not measured yet")])}
    parts = {row["commit"] or "unknown" for one in found for row in one["rows"].values()}
    seeds = ", ".join(str(one["seed"]) for one in found)
    facts = f"Seeds {seeds}; {_sizes(found)}; commit {', '.join(sorted(parts))}."
    return {NAME: f"{markdown(TARGETS, rows(found))}\n\n{facts}"}


def _sizes(results: Sequence[Mapping[str, Any]]) -> str:
    """What was asked for, in words; each, where seeds differ."""
    said = [
        f"{s['networks']} networks of each kind, populations of {s['members']} and"
        f" {s['generations']} rotations, {s['images']} images attacked"
        for s in (one["sizes"] for one in results)
    ]
    return " / ".join(dict.fromkeys(said))


def _percent(values: Sequence[float | None]) -> str:
    text = shown(values, 2)
    return text if all(value is None for value in values) else f"{text} %"


def main() -> None:
    """Measure each seed, and print the table of those."""
    flags = parser(__doc__)
    flags.add_argument("--task", choices=("mnist", "digits"), default="mnist")
    flags.add_argument("--data", default="", help="folder of the MNIST idx files")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--members", type=int, default=24)
    flags.add_argument("--basins", type=int, default=4)
    flags.add_argument("--generations", type=int, default=11)
    flags.add_argument("--networks", type=int, default=4, help="trained networks a kind and seed")
    flags.add_argument("--images", type=int, default=1000, help="that are attacked, or calibrate")
    flags.add_argument("--base-steps", type=int, default=0, help="0: the population's own")
    flags.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    flags.add_argument("--runs", type=Path, default=RUNS, help="folder of the vaults")
    given = flags.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in given.seeds:
        one = Seed(seed, given)
        one.measure()
        found.append(one.record)
    print(markdown(TARGETS, rows(found)))


if __name__ == "__main__":
    main()
