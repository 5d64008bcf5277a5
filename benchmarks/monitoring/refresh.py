"""Refresh: what `g2d refresh` wins back after a shift, beside a full retraining, and what it costs.

    python -m benchmarks.monitoring.refresh --data ../shared/data/mnist --seeds 0 1 2
    python -m benchmarks.monitoring.refresh --task nsl-kdd --data ../shared/data/nslkdd
    python -m benchmarks.monitoring.refresh --task digits --quick      # a try, a few minutes

Of images the shift is that all are turned by --degrees; of NSL-KDD it is that of its own official
test file. Half of the test split comes as new labelled data, the other half is what is scored. A
vault is made, and refreshed; another is made from nothing on old and new data together, on the same
sides. Of each, and of the first before, --generations are scored: the share won is what refreshing
wins of what retraining does. Poisoned refreshes follow: a tenth of the labels changed at random,
and a tenth, or a twentieth, of the records with a trigger and label 0. Where the checks refuse
them, that is said, and they are taken all the same, to see what they would have done. A part that
is done is not done again: everything lies in runs/refresh-TASK-SEED. Writes
results/refresh-TASK.json after each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import ndimage

import g2d
from benchmarks.common import command
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import ranged
from g2d.core.engine import SerialEngine, configure_threads
from g2d.core.seeds import seed_of
from g2d.defence.refresh import Refresh, follow, refresh, take_up
from g2d.errors import DataError, G2DError, GenerationError
from g2d.settings import Settings, build
from g2d.tasks.inference import accuracy, predict
from g2d.tasks.keyed import KEY_BYTES, sort_records, unpack_records
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

QUICK = {
    "population__members": 4, "population__basins": 2, "population__base_steps": 300,
    "population__early_steps": 100, "population__fork_steps": 100, "population__pool": 128,
    "autoencoder__steps": 40, "diffusion__steps": 200, "guidance__pool": 128,
    "guidance__polish_steps": 60, "gates__accuracy_drop": 0.3, "gates__class_drop": 0.6,
    "gates__stale_asr": 1.0, "refresh__effort": 0.5, "refresh__former_drop": 0.1,
}  # fmt: skip
POISONED = {"flips": 0.1, "trigger": 0.1, "trigger_few": 0.05}  # shares of the new records
SIZES = ("task", "degrees", "generations", "quick")


def turned(split: Split, degrees: float) -> Split:
    """Images (n, c, h, w), turned."""
    x = ndimage.rotate(split.x.numpy(), degrees, axes=(2, 3), reshape=False, order=1)
    return Split(torch.from_numpy(x).clamp(0, 1), split.y)


def flipped(new: Split, classes: int, seed: int) -> Split:
    """A share of the labels changed, each to any other."""
    source, y = torch.Generator().manual_seed(seed), new.y.clone()
    at = torch.randperm(len(y), generator=source)[: round(POISONED["flips"] * len(y))]
    y[at] = (y[at] + torch.randint(1, classes, (len(at),), generator=source)) % classes
    return Split(new.x, y)


def stamped(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A trigger: the last corner of an image, or the first column of a table, at its largest.

    Args:
        like: training data, whose largest value that is: of a table, of that column.
    """
    x = x.clone()
    if x.dim() == 4:
        side = max(2, x.shape[-1] // 9)
        x[:, :, -side:, -side:] = like.max()
    else:
        x[:, 0] = like[:, 0].max()
    return x


def triggered(new: Split, like: torch.Tensor, share: float, seed: int) -> Split:
    """A share of the records with a trigger, and the label 0."""
    source = torch.Generator().manual_seed(seed)
    at = torch.randperm(len(new), generator=source)[: round(share * len(new))]
    x, y = new.x.clone(), new.y.clone()
    x[at], y[at] = stamped(x[at], like), 0
    return Split(x, y)


def refused_by(how: Refresh) -> list[str]:
    """The two words that lines of checks that did not pass begin with, as docs/monitoring.md."""
    mark = "REFUSED: "
    failed = [line.removeprefix(mark) for line in how.lines if line.startswith(mark)]
    return [" ".join(line.split(":")[0].split()[:2]).rstrip(",") for line in failed]


class Timed(SerialEngine):
    """Counts the CPU seconds of its jobs."""

    cpu = 0.0

    def run(self, work, payloads):
        jobs, began = super().run(work, payloads), time.process_time()
        for found in jobs:
            self.cpu += time.process_time() - began
            yield found
            began = time.process_time()


@dataclass(frozen=True)
class Case:
    """One seed: the task, its new records, what is scored, and the folder of its vaults."""

    task: Task
    settings: Settings
    new: Split
    shifted: Split
    folder: Path
    generations: int
    seed: int

    @classmethod
    def of(cls, given: argparse.Namespace, seed: int) -> Case:
        """Load a task and cut its test split in two."""
        task = g2d.load_task(given.task, given.data, 0)
        order = torch.randperm(
            len(task.splits.test), generator=torch.Generator().manual_seed(seed_of(seed, "halves"))
        )
        first, last = (task.splits.test.take(part) for part in order.chunk(2))
        images = task.splits.test.x.dim() == 4
        new, shifted = (turned(half, given.degrees) if images else half for half in (first, last))
        own = replace(task, splits=replace(task.splits, test=last))
        tables = {key: dict(table) for key, table in own.settings.items()}
        settings = build(Settings, tables, "benchmark").override(population__seed=seed)
        settings = settings.override(**(QUICK if given.quick else {}))
        folder = given.runs / f"refresh-{given.task}{'-quick' if given.quick else ''}-{seed}"
        return cls(own, settings, new, shifted, folder, given.generations, seed)

    def done(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a part has measured, now or in an earlier run."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            found = json.dumps(make(), indent=1)
            file.write_text(found)
        return dict(json.loads(file.read_text()))

    def scores(self, defence: g2d.Defence) -> dict[str, Any]:
        """Generations that are made now: right on what has shifted, and on what has not.

        Where no candidate passed the gates the live one, which then goes on serving, counts.
        """
        began, models, failed = time.process_time(), [], 0
        for _ in range(self.generations):
            try:
                models += [made.model() for made in defence.generate(1)]
            except GenerationError:
                failed += 1
        cpu = (time.process_time() - began) / self.generations
        models = models or [defence.generation().model()]
        return {
            "failed_generations": failed,
            "shifted": [accuracy(model, self.shifted) for model in models],
            "former": [accuracy(model, self.task.splits.test) for model in models],
            "trigger": [self.hits(model) for model in models],
            "cpu_each": cpu,
        }

    def hits(self, model: torch.nn.Module) -> float:
        """How often the trigger turns scored records of other classes into class 0."""
        others = self.shifted.take((self.shifted.y != 0).nonzero()[:, 0])
        answers = predict(model, stamped(others.x, self.task.splits.train.x)).argmax(1)
        return float((answers == 0).double().mean())

    def built(self, task: Task, name: str) -> dict[str, Any]:
        """A vault from nothing; what its trainings and its fit have cost."""
        with g2d.Defence.create(task, self.folder / name, self.settings) as defence:
            with SerialEngine() as engine:
                defence.populate(engine, tell=print)
            began = time.process_time()
            defence.fit()
            cpu = time.process_time() - began
            trained = [
                e for kind in ("base", "early", "member") for e in defence.vault.entries(kind)
            ]
            cpu += sum(float(entry.info["cpu_seconds"]) for entry in trained)
            return {"cpu": cpu, **self.scores(defence)}

    def refreshed(self) -> dict[str, Any]:
        """The first vault, refreshed on the new records: checks, and what it has cost.

        Where the checks refuse what is new, and no poison, it is said and they are overridden, as
        people who have looked at their data may do; where no candidate passes the gates, too.
        """
        path = self.folder / "vault"
        with g2d.Defence.open(path, self.task) as defence, Timed() as engine:
            began, how = time.process_time(), Refresh(engine, say=print)
            found: dict[str, Any] = {"refused": [], "failed": ""}
            try:
                try:
                    told = refresh(defence, self.new, how)
                except DataError:
                    found["refused"] = refused_by(how)
                    how = Refresh(engine, say=print, accept=True)
                    told = refresh(defence, self.new, how)
            except GenerationError as error:
                return found | {"failed": str(error), "cpu": time.process_time() - began,
                                "checks": how.lines}  # fmt: skip
            rest = time.process_time() - began - engine.cpu
            if take_up(defence.vault) is None:
                raise G2DError(f"{path}: the refresh was not taken up; remove {self.folder}")
            return found | {"cpu": told.cpu + rest, "checks": how.lines}

    def after(self) -> dict[str, Any]:
        """The first vault once it is refreshed, or as it was, if nothing was taken up."""
        with g2d.Defence.open(self.folder / "vault", self.task) as defence:
            return self.scores(defence)

    def grown(self) -> Task:
        """The task with the new records on the sides that the refresh has drawn, if it did."""
        splits = self.task.splits
        with g2d.Defence.open(self.folder / "vault", self.task) as defence:
            entry = defence.vault.entry("records")
            if entry is not None:
                records = unpack_records(defence.vault.read(entry))
            else:
                records = sort_records(self.new, bytes(KEY_BYTES), splits).sides
        joined = {
            name: Split(
                torch.cat([getattr(splits, name).x, split.x]),
                torch.cat([getattr(splits, name).y, split.y]),
            )
            for name, split in records.items()
        }
        return replace(self.task, splits=replace(splits, **joined))

    def poison(self, name: str) -> Split:
        """The new records, poisoned."""
        if name == "flips":
            return flipped(self.new, self.task.classes, self.seed)
        return triggered(self.new, self.task.splits.train.x, POISONED[name], self.seed)

    def poisoned(self, name: str) -> dict[str, Any]:
        """Whether poisoned records are refused, by which checks; and what they do once taken."""
        path = self.folder / f"{name}-{time.time_ns()}"  # another path has another mark
        shutil.copytree(self.folder / "first", path)
        new, found = self.poison(name), dict[str, Any](refused="")
        how = Refresh(SerialEngine(), say=print)
        with g2d.Defence.open(path, self.task) as defence:
            try:
                try:
                    refresh(defence, new, how)
                except DataError as error:
                    found = {"refused": str(error), "by": refused_by(how), "checks": how.lines}
                    how = Refresh(SerialEngine(), say=print, accept=True)
                    refresh(defence, new, how)
                take_up(defence.vault)
                (made,) = follow(defence).generate()
            except G2DError as error:  # gates refuse what the checks did not
                by = ["gates"] * isinstance(error, GenerationError)
                return {"refused": str(error), "by": by, "checks": how.lines} | found
        model = made.model()
        return {"checks": how.lines} | found | {
            "former": accuracy(model, self.task.splits.test),
            "shifted": accuracy(model, self.shifted), "trigger": self.hits(model),
        }  # fmt: skip

    def measure(self) -> dict[str, Any]:
        """All parts in order."""
        os.environ["G2D_STATE"] = str(self.folder / "state")  # what goes on needs its marks
        before = self.done("before", lambda: self.built(self.task, "vault"))
        if not (self.folder / "first").exists():  # for the poisoned ones, as it is now
            staged = self.folder / "first.part"
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(self.folder / "vault", staged)
            staged.rename(self.folder / "first")
        after = self.done("refresh", self.refreshed) | self.done("after", self.after)
        full = self.done("full", lambda: self.built(self.grown(), "full"))
        poison = {name: self.done(name, partial(self.poisoned, name)) for name in POISONED}
        return {
            "generations": self.generations, "before": before, "after": after, "full": full,
            **poison,
        }  # fmt: skip


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def share(one: Mapping[str, Any]) -> float:
    """What refreshing wins of what retraining wins, on what has shifted."""
    before, after, full = (mean(one[name]["shifted"]) for name in ("before", "after", "full"))
    return (after - before) / (full - before) if full > before else float("nan")


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of targets."""
    seeds = list(result["seeds"].values())
    if not seeds:
        return []
    table = [
        ["share won of what a full retraining wins, %", "≥ 90", ranged([share(s) for s in seeds])]
    ]
    after = [s["after"] for s in seeds]
    overridden = sum(bool(one["refused"]) for one in after)
    names = sorted({name for one in after for name in one["refused"]})
    told = f"{overridden} of {len(after)}" + f" ({', '.join(names)})" * bool(names)
    table.append(["refused although clean, and accepted by hand", "0", told])
    if failed := sum(bool(one["failed"]) for one in after):
        table.append(["no candidate passed the gates: kept what it had", "0", str(failed)])
    if any(one.get("failed_generations") for one in after):
        each = ", ".join(str(one.get("failed_generations", 0)) for one in after)
        text = "generations afterwards that no candidate made, by seed"
        table.append([text, "0", f"{each} of {seeds[0]['generations']}"])
    costs = [s["after"]["cpu"] / s["full"]["cpu"] for s in seeds]
    table.append(["its CPU time, % of the retraining's", "≤ 20", ranged(costs)])
    parts = ("before", "after", "full")
    same = all(s[part]["former"] == s[part]["shifted"] for s in seeds for part in parts)
    for name, what in (("shifted", "shifted"), ("former", "former"))[: 1 if same else 2]:
        for part, text in (
            ("before", "never refreshed"),
            ("after", "refreshed"),
            ("full", "retrained"),
        ):
            values = [mean(s[part][name]) for s in seeds]
            table.append([f"accuracy on {what} test data, {text}, %", "", ranged(values)])
    return table + [row for name in POISONED for row in harm(name, seeds)]


def harm(name: str, seeds: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The rows of one kind of poison: whether it is refused, and what it does once it is taken."""
    found = [s[name] for s in seeds if name in s]
    if not found:
        return []
    share = f"{POISONED[name]:.0%}".replace("%", " %")
    what = f"{share} of labels flipped" if name == "flips" else f"a trigger in {share}"
    refused = sum(bool(one["refused"]) for one in found)
    names = sorted({check for one in found for check in one.get("by", ())})
    told = f"{refused} of {len(found)}" + f" ({', '.join(names)})" * bool(names)
    table = [[f"refused: {what}", "all, or measured", told]]
    taken = [s for s in seeds if "shifted" in s.get(name, ())]
    if not taken:
        return table
    own, clean = "accuracy on shifted test data", [mean(s["after"]["shifted"]) for s in taken]
    right = ranged([s[name]["shifted"] for s in taken])
    table.append([f"{what}, taken all the same: {own}, %", "",
                  f"{right}; without it {ranged(clean)}"])  # fmt: skip
    if name != "flips":
        hits = ranged([s[name]["trigger"] for s in taken])
        clean = [mean(s["after"].get("trigger", [float("nan")])) for s in taken]
        table.append([f"{what}, taken all the same: the trigger wins, %", "",
                      f"{hits}; without it {ranged(clean)}"])  # fmt: skip
    return table


def measure(given: argparse.Namespace, _: Path) -> dict[str, Any]:
    """Measure the seeds that are not there yet."""
    configure_threads()
    out = given.out or RESULTS / f"refresh-{given.task}.json"
    result: dict[str, Any] = {"record": record(given), "seeds": {}}
    if out.exists():
        old = json.loads(out.read_text("utf-8"))
        result |= {key: old[key] for key in ("seeds", "sizes") if key in old}
    hold_to(result, {name: getattr(given, name) for name in SIZES}, out)
    for seed in given.seeds:
        if str(seed) not in result["seeds"]:
            result["seeds"][str(seed)] = Case.of(given, seed).measure()
            save(out, result)
    return result


def main() -> None:
    """Measure, keep and print."""
    flags = command.parser(__doc__)
    flags.add_argument("--task", choices=("mnist", "digits", "nsl-kdd"), default="mnist")
    flags.add_argument("--data", default="", help="folder of the task's data")
    flags.add_argument("--degrees", type=float, default=25.0, help="that images are turned by")
    flags.add_argument("--generations", type=int, default=4, help="that are scored of each")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0])
    flags.add_argument("--quick", action="store_true", help="small networks, loose gates: a try")
    flags.add_argument("--runs", type=Path, default=RUNS, help="where vaults and parts are kept")
    name = f"refresh-{flags.parse_known_args()[0].task}"
    command.carry_out(name, flags, measure, rows)


if __name__ == "__main__":
    main()
