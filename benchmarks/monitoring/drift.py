"""Drift: how soon is it told that the world has moved, and how often while it stands still?

    python -m benchmarks.monitoring.drift --data FOLDER --seeds 0 1 2       # MNIST, minutes a seed
    python -m benchmarks.monitoring.drift --task digits --seeds 0 --benign 5000 --worlds 2   # a try

For each seed the task's base is trained with its own settings. Requests are of one image of the
gate and test splits each, with noise of its own (a sensor's), from fifty clients. Still: --benign
requests, of which one in a hundred begins a burst of fifty identical retries. Moved: after --usual
still requests 3,000 of a world that moved, --worlds draws each: half of all requests show one
class; images are blurred (mean of 3 by 3); one class comes half as often. The service's monitor has
its default settings; the rivals are river's ADWIN with its own, on the confidence alone, and on
each score, confidence and input figure without a correction or a guard. All see the same requests,
the rivals the first --rival of the still ones. What can be told of half a class at all is shown by
one that no service can have: it sees the true labels and knows all shares, before and after; it may
err once in a million requests. Writes results/drift.json after each part of a seed;
what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from benchmarks.common import command
from benchmarks.common.places import RESULTS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import mean
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
MOVES, STILL = ("label shift", "blur", "half a class"), "still"
KNOWING = "whoever knows labels, class and shares"
SIZES = ("task", "benign", "rival", "usual", "worlds")

Part = dict[str, Any]
"""What one part of one seed found, by the kind of monitor."""


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


OURS = "ours"
KINDS: Mapping[str, Callable[[Model], Watching]] = {
    OURS: Ours,
    "ADWIN alone, on the confidence": lambda model: Alone(model, False),
    "ADWIN alone, on each figure": lambda model: Alone(model, True),
}


class Knowing:
    """The test of Shiryaev and Roberts, best or nearly so (Pollak 1985), for a change that is
    known: only when is not. It errs once in a million requests, in the mean."""

    def __init__(self, before: Array, after: Array) -> None:
        self._ratios, self._evidence, self.alarms = after / before, 0.0, 0

    def observe(self, label: int) -> None:
        """Take one request's true label."""
        self._evidence = (self._evidence + 1) * float(self._ratios[label])
        if self._evidence >= 1e6:
            self.alarms, self._evidence = self.alarms + 1, 0.0


class World:
    """Requests to one network: images with their logits, as long as one asks."""

    def __init__(self, task: Task, network: nn.Module, seed: int) -> None:
        parts = (task.splits.gate, task.splits.test)
        self.x, self.y = torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]).numpy()
        self.network, self.classes = network, task.classes
        self.chance, self.noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def weights(self, move: str, which: int) -> Array:
        """How often each class (classes,) comes, by how often it did."""
        weight = np.ones(self.classes)
        if move == "half a class":
            weight[which] = 0.5
        elif move == "label shift":
            weight[which] = self.classes - 1.0
        return weight

    def shares(self, move: str = "", which: int = 0) -> Array:
        """The shares of the true classes (classes,)."""
        counts = np.bincount(self.y, minlength=self.classes) * self.weights(move, which)
        return counts / counts.sum()

    def requests(
        self, count: int, move: str = "", which: int = 0
    ) -> Iterator[tuple[Array, Array, int]]:
        """Yield one request's image (1, ...), its logits (1, classes) and label after the other."""
        weight = self.weights(move, which)
        p = weight[self.y] / weight[self.y].sum()
        for begin in range(0, count, CHUNK):
            drawn = self.chance.choice(len(self.y), min(CHUNK, count - begin), p=p)
            x = self.x[torch.from_numpy(drawn)]
            x = blurred(x) if move == "blur" else x
            x = (x + NOISE * torch.randn(x.shape, generator=self.noise)).clamp(0, 1)
            logits = predict(self.network, x).numpy()
            labels = self.y[drawn].tolist()
            yield from zip(x.numpy()[:, None], logits[:, None], labels, strict=True)


def blurred(x: Tensor) -> Tensor:
    """The mean of 3 by 3 pixels."""
    return nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def client(n: int) -> str:
    """Who asks: one of some clients."""
    return f"198.51.100.{n % CLIENTS}"


def still(world: World, watching: Mapping[str, Watching], counts: Mapping[str, int]) -> Part:
    """Alarms where nothing moves, bursts of retries included, and the cost of a request.

    Args:
        counts: how many requests each is shown, at least: all of a burst, or none.
    """
    told, took = dict.fromkeys(watching, 0), dict.fromkeys(watching, 0.0)
    longest, asked = max(counts.values()), 0
    requests = world.requests(longest)
    while asked < longest:
        x, logits, _ = next(requests)
        many = BURST if world.chance.random() < 1 / EVERY else 1
        for name, one in watching.items():
            if told[name] < counts[name]:
                began = time.process_time()
                for _ in range(many):
                    one.observe(x, logits, client(asked))
                took[name] += time.process_time() - began
                told[name] += many
        asked += many
    return {
        name: {"requests": told[name], "alarms": one.alarms,
               "microseconds": round(1e6 * took[name] / told[name], 1)}
        for name, one in watching.items()
    }  # fmt: skip


def moved(
    world: World, watching: Mapping[str, Watching], usual: int, move: str, which: int
) -> dict[str, int | None]:
    """Requests until each one's first alarm after the world has moved; None: not soon enough."""
    knowing = Knowing(world.shares(), world.shares(move, which)) if move == MOVES[2] else None
    everyone: dict[str, Watching | Knowing] = {**watching}
    if knowing:
        everyone[KNOWING] = knowing
    for n, (x, logits, label) in enumerate(world.requests(usual)):
        for one in watching.values():
            one.observe(x, logits, client(n))
        if knowing:
            knowing.observe(label)
    before = {name: one.alarms for name, one in everyone.items()}
    found: dict[str, int | None] = dict.fromkeys(everyone)
    for n, (x, logits, label) in enumerate(world.requests(LOOKED, move, which), 1):
        for name, one in watching.items():
            if found[name] is None:
                one.observe(x, logits, client(n))
        if knowing and found[KNOWING] is None:
            knowing.observe(label)
        for name, watched in everyone.items():
            if found[name] is None and watched.alarms > before[name]:
                found[name] = n
        if None not in found.values():
            break
    return found


def part(task: Task, network: nn.Module, seed: int, name: str, given: argparse.Namespace) -> Part:
    """One part of one seed: all monitors see the same requests."""
    model = Model("g2d", tuple(task.splits.test.x.shape[1:]), "float32", task.classes)
    watching = [{kind: make(model) for kind, make in KINDS.items()} for _ in range(given.worlds)]
    if name == STILL:
        counts = {kind: given.benign if kind == OURS else min(given.benign, given.rival)
                  for kind in KINDS}  # fmt: skip
        return still(World(task, network, seed), watching[0], counts)
    found = [
        moved(World(task, network, 1000 * seed + n + 1), watching[n], given.usual, name,
              n % task.classes)
        for n in range(given.worlds)
    ]  # fmt: skip
    return {kind: [one[kind] for one in found] for kind in found[0]}


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of targets, of what is there."""
    seeds, table = list(result["seeds"].values()), []
    for name in (*KINDS, KNOWING):
        target = "within 1,000 requests" if name == OURS else ""
        for move in MOVES:
            after = [n for one in seeds for n in one.get(move, {}).get(name, [])]
            if not after:
                continue
            soon = sum(n is not None and n <= SOON for n in after)
            median = sorted(n or LOOKED + 1 for n in after)[len(after) // 2]
            told = f"{soon} of {len(after)}; in the median after "
            told += f"{median:,}" if median <= LOOKED else f"more than {LOOKED:,}"
            table.append([f"{move}: {name}", target, told])
        calm = [one[STILL][name] for one in seeds if name in one.get(STILL, {})]
        if not calm:
            continue
        alarms, asked = (sum(one[key] for one in calm) for key in ("alarms", "requests"))
        target = "≤ 1 in 1,000,000" if name == OURS else ""
        told = f"{alarms:,} in {asked:,}; at most {most(alarms, asked)}"
        table.append([f"alarms where nothing moved: {name}", target, told])
        cost = mean([one["microseconds"] for one in calm])
        table.append([f"CPU time of a request: {name}", "", f"{cost:.0f} µs"])
    return table


def most(alarms: int, asked: int) -> str:
    """The exact upper end of the 95 % interval of a rate, in a million (Garwood 1936)."""
    return f"{1e6 * chi2.ppf(0.95, 2 * alarms + 2) / 2 / asked:,.2f} in 1,000,000"


def measure(given: argparse.Namespace, _: Path) -> dict[str, Any]:
    """Measure the parts that are not there yet."""
    out = given.out or RESULTS / "drift.json"
    result: dict[str, Any] = {"record": record(given), "task": given.task, "seeds": {}}
    if out.exists():
        old = json.loads(out.read_text())
        result |= {key: old[key] for key in ("seeds", "sizes") if key in old}
    hold_to(result, {name: getattr(given, name) for name in SIZES}, out)
    task = load_task(given.task, given.data)
    tables = {k: dict(v) for k, v in task.settings.items()}
    settings = build(Settings, tables, "the task", stored=True)
    for seed in given.seeds:
        found = result["seeds"].setdefault(str(seed), {})
        missing = [name for name in (*MOVES, STILL) if name not in found]
        network = trained(task, settings, seed) if missing else nn.Identity()
        for name in missing:
            found[name] = part(task, network, seed, name, given)
            save(out, result)
            print(f"seed {seed}, {name}: {found[name]}", flush=True)
    return result


def main() -> None:
    """Measure, keep and print."""
    flags = command.parser(__doc__)
    flags.add_argument("--task", default="mnist", choices=("mnist", "digits"))
    flags.add_argument("--data", default="", help="folder of MNIST")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--benign", type=int, default=1_000_000, help="requests that are still")
    flags.add_argument("--rival", type=int, default=100_000, help="of them shown to rivals")
    flags.add_argument("--usual", type=int, default=5000, help="still requests before a move")
    flags.add_argument("--worlds", type=int, default=20, help="draws of each move")
    command.carry_out("drift", flags, measure, rows)


if __name__ == "__main__":
    main()
