"""Drift: how soon is it told that the world has moved, and how often while it stands still?

    python -m benchmarks.monitoring.drift --data FOLDER --seeds 0 1 2       # MNIST, minutes a seed
    python -m benchmarks.monitoring.drift --task digits --seeds 0 --benign 5000 --worlds 2   # a try

For each seed the task's base is trained with its own settings. Requests are of one image of the
gate and test splits each, with noise of its own (a sensor's), from fifty clients. Still: --benign
requests, of which one in a hundred begins a burst of fifty identical retries. Moved: after --usual
still requests 3,000 of a world that moved, --worlds draws each: half of all requests show one
class; images are blurred (mean of 3 by 3); one class comes half as often. The service's monitor has
its default settings; the rivals are river's ADWIN with its own, on the confidence alone, and on
each score, confidence and input figure without a correction or a guard. Writes results/drift.json
after each seed; a seed that is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import command
from benchmarks.common.places import RESULTS
from benchmarks.common.results import hold_to, record, save
from benchmarks.ownership.canaries import trained
from g2d.core.types import Array
from g2d.service.http.protocol import Model
from g2d.service.monitors.builtin import Watched
from g2d.service.monitors.drift.figures import Answers, InputFigures
from g2d.service.monitors.drift.monitor import DriftMonitor
from g2d.service.monitors.drift.streams import load_adwin
from g2d.settings import MonitorSettings, Settings, build
from g2d.tasks.builtin import load_task
from g2d.tasks.inference import predict
from g2d.tasks.task import Task

SOON, LOOKED = 1000, 3000  # requests within which it is to be told, and of which it is looked
CHUNK, CLIENTS, NOISE = 1000, 50, 0.02
BURST, EVERY = 50, 100  # retries of a burst; a burst begins once in so many requests
MOVES = ("label shift", "blur", "half a class")


class Watching(Protocol):
    """A monitor of one kind, which counts its alarms."""

    alarms: int

    def observe(self, inputs: Array, logits: Array, client: str) -> None:
        """Take one request."""


class Ours:
    """The service's own."""

    def __init__(self, model: Model) -> None:
        self.alarms = 0
        self._monitor = DriftMonitor(Watched(model, MonitorSettings(), self._count))

    def observe(self, inputs: Array, logits: Array, client: str) -> None:
        self._monitor.observe(inputs, logits, client)

    def _count(self, *_: Any, **__: Any) -> None:
        self.alarms += 1


class Alone:
    """ADWIN with river's defaults: on the confidence, or on each figure by itself."""

    def __init__(self, model: Model, each: bool) -> None:
        self.alarms, self._each, self._figures = 0, each, InputFigures(model)
        count = 1 + (model.classes + len(self._figures.names)) * each
        self._watched = [load_adwin()() for _ in range(count)]

    def observe(self, inputs: Array, logits: Array, client: str) -> None:
        start = np.array([0])
        scores = Answers.of(logits, start).scores[0]
        values = [scores[-1]]
        if self._each:
            values = [*scores, *self._figures(inputs, start)[0]]
        moved = False
        for watched, value in zip(self._watched, values, strict=True):
            watched.update(float(value))
            moved |= watched.drift_detected
        self.alarms += moved


KINDS = {
    "ours": Ours,
    "ADWIN alone, on the confidence": lambda model: Alone(model, False),
    "ADWIN alone, on each figure": lambda model: Alone(model, True),
}


class World:
    """Requests to one network: images with their logits, as long as one asks."""

    def __init__(self, task: Task, network: nn.Module, seed: int) -> None:
        parts = (task.splits.gate, task.splits.test)
        self.x, self.y = torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]).numpy()
        self.network, self.classes = network, task.classes
        self.chance, self.noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def requests(self, count: int, move: str = "", which: int = 0) -> Iterator[tuple[Array, Array]]:
        """Yield one request's image (1, ...) and its logits (1, classes) after the other."""
        weight = np.ones(self.classes)
        if move == "half a class":
            weight[which] = 0.5
        elif move == "label shift":
            weight[which] = self.classes - 1.0
        p = weight[self.y] / weight[self.y].sum()
        for begin in range(0, count, CHUNK):
            drawn = self.chance.choice(len(self.y), min(CHUNK, count - begin), p=p)
            x = self.x[torch.from_numpy(drawn)]
            x = blurred(x) if move == "blur" else x
            x = (x + NOISE * torch.randn(x.shape, generator=self.noise)).clamp(0, 1)
            logits = predict(self.network, x).numpy()
            yield from zip(x.numpy()[:, None], logits[:, None], strict=True)


def blurred(x: Tensor) -> Tensor:
    """The mean of 3 by 3 pixels."""
    return nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def client(n: int) -> str:
    """Who asks: one of some clients."""
    return f"198.51.100.{n % CLIENTS}"


def still(world: World, watching: Watching, count: int) -> dict[str, Any]:
    """Alarms where nothing moves, bursts of retries included, and the cost of a request."""
    told, took = 0, 0.0
    requests = world.requests(count)
    while told < count:
        x, logits = next(requests)
        many = BURST if world.chance.random() < 1 / EVERY else 1
        began = time.process_time()
        for _ in range(many):
            watching.observe(x, logits, client(told))
        took += time.process_time() - began
        told += many
    return {"requests": told, "alarms": watching.alarms, "microseconds": 1e6 * took / told}


def moved(world: World, watching: Watching, usual: int, move: str, which: int) -> int | None:
    """Requests until the first alarm after the world has moved; None: none soon enough."""
    for n, (x, logits) in enumerate(world.requests(usual)):
        watching.observe(x, logits, client(n))
    before = watching.alarms
    for n, (x, logits) in enumerate(world.requests(LOOKED, move, which), 1):
        watching.observe(x, logits, client(n))
        if watching.alarms > before:
            return n
    return None


def one_seed(task: Task, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Everything of one seed."""
    settings = build(
        Settings, {k: dict(v) for k, v in task.settings.items()}, "the task", stored=True
    )
    network, shape = trained(task, settings, seed), tuple(task.splits.test.x.shape[1:])
    model, found = Model("g2d", shape, "float32", task.classes), dict[str, Any]()
    for name, kind in KINDS.items():
        worlds = World(task, network, seed)
        own: dict[str, Any] = {"still": still(worlds, kind(model), given.benign)}
        for move in MOVES:
            own[move] = [
                moved(World(task, network, 1000 * seed + n + 1), kind(model), given.usual, move,
                      n % task.classes)
                for n in range(given.worlds)
            ]  # fmt: skip
        found[name] = own
    return found


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of targets."""
    table = []
    for name in KINDS:
        seeds = [one[name] for one in result["seeds"].values()]
        target = "within 1,000 requests" if name == "ours" else ""
        for move in MOVES:
            after = [n for one in seeds for n in one[move]]
            soon = sum(n is not None and n <= SOON for n in after)
            median = sorted(n or LOOKED + 1 for n in after)[len(after) // 2]
            told = f"{soon} of {len(after)}; in the median after "
            told += f"{median:,}" if median <= LOOKED else f"more than {LOOKED:,}"
            table.append([f"{move}: {name}", target, told])
        alarms, asked = (sum(one["still"][key] for one in seeds) for key in ("alarms", "requests"))
        target = "≤ 1 in 1,000,000" if name == "ours" else ""
        table.append([f"alarms where nothing moved: {name}", target, f"{alarms:,} in {asked:,}"])
    cost = [one["ours"]["still"]["microseconds"] for one in result["seeds"].values()]
    told = f"{sum(cost) / len(cost):.0f} µs" if cost else ""
    return [*table, ["CPU time of a request: ours", "", told]]


def measure(given: argparse.Namespace, _: Path) -> dict[str, Any]:
    """Measure the seeds that are not there yet."""
    out = given.out or RESULTS / "drift.json"
    result: dict[str, Any] = {"record": record(given), "task": given.task, "seeds": {}}
    if out.exists():
        old = json.loads(out.read_text())
        result |= {key: old[key] for key in ("seeds", "sizes") if key in old}
    sizes = {name: getattr(given, name) for name in ("task", "benign", "usual", "worlds")}
    hold_to(result, sizes, out)
    task = load_task(given.task, given.data)
    for seed in given.seeds:
        if str(seed) not in result["seeds"]:
            result["seeds"][str(seed)] = one_seed(task, seed, given)
            save(out, result)
    return result


def main() -> None:
    """Measure, keep and print."""
    flags = command.parser(__doc__)
    flags.add_argument("--task", default="mnist", choices=("mnist", "digits"))
    flags.add_argument("--data", default="", help="folder of MNIST")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--benign", type=int, default=1_000_000, help="requests that are still")
    flags.add_argument("--usual", type=int, default=5000, help="still requests before a move")
    flags.add_argument("--worlds", type=int, default=20, help="draws of each move")
    command.carry_out("drift", flags, measure, rows)


if __name__ == "__main__":
    main()
