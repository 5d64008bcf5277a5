"""Evidence for robust members: every recipe side by side, and a chain generated from them.

    python benchmarks/robust.py --data ../shared/data/mnist --seeds 0 1 2

MNIST at eps = 0.3 under the inf-norm; needs the four idx files. About 95 CPU minutes a seed; a row
that is in the seed's JSON is not measured again, and networks lie in runs/robust-<seed>, so the run
can be interrupted. Run one process a seed to use more cores. Writes
benchmarks/results/robust-mnist-seed*.json; `benchmarks/tables.py` makes the tables.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import json

import torch
from torch import Tensor

import g2d
from g2d.attacks import apgd, autoattack, pgd, project
from g2d.attacks.eot import LOSSES, eot_pgd
from g2d.census import flip_census
from g2d.engine import SerialEngine, calm
from g2d.harden import Teacher
from g2d.population import Job, Trained, run_job, seed_of
from g2d.protect.ranges import Ranges
from g2d.settings import HardenSettings, Settings, build
from g2d.tasks import Task, load_task
from g2d.train import Logits, load_model, predict
from g2d.weights import unpack
from measure import hardware, save
from robust_recipes import student

N = 500  # test images of AutoAttack and of the transfer attacks
CHAIN = 30  # generations; the last JUDGED of them are judged by AutoAttack
JUDGED = 10
JOINT = 20
MEMBERS = 3  # of each population, judged by AutoAttack
FORKS = 6  # of the populations that are made for a row alone
PARTS = (8, 4, 2)  # the base's training, shortened: the curve of compute
RECIPES: dict[str, dict[str, Any]] = {
    "standard": {"recipe": ()},
    "standard, clamped": {"recipe": ("clamp",)},
    "the blog's recipe": {"recipe": ("robust_recipes:blog",)},
    "FGSM-RS": {"recipe": ("adversarial",), "method": "fgsm", "guard": "off"},
    "FGSM-RS, guarded": {"recipe": ("adversarial",), "method": "fgsm", "guard": "switch"},
    "PGD": {},
    "TRADES": {"method": "trades"},
}
SHORT = {
    "standard": 4, "standard, clamped": 4, "the blog's recipe": 4, "FGSM-RS": 2,
    "FGSM-RS, guarded": 2, "TRADES": 2,
}  # fmt: skip
STUDENTS: dict[str, dict[str, Any]] = {
    "student, adversarial": {"recipe": ("adversarial",)},
    "student, RSLAD": {"recipe": ("distil", "adversarial"), "clean": 0.2},
    "student, defensive distillation": {"recipe": ("distil",), "temperature": 20.0},
}


class Run:
    """One seed: networks that are trained once, rows that are measured once."""

    def __init__(self, seed: int, data: str, out: Path, work: Path) -> None:
        self.seed, self.path = seed, out / f"robust-mnist-seed{seed}.json"
        self.work = work / f"robust-{seed}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {"seed": seed, "hardware": hardware(), "rows": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text())
        self.task = load_task("mnist-robust", data)
        tables = {name: dict(table) for name, table in self.task.settings.items()}
        tables["task"] = {"name": "mnist-robust", "data": data}
        settings = build(Settings, tables, "the task's settings")
        self.settings = settings.override(population__seed=seed)
        draws = torch.Generator().manual_seed(seed_of(seed, "examples"))
        self.examples = self.task.splits.test.sample(N, draws)

    def note(self, key: str, value: Any) -> None:
        """Keep one result."""
        self.record[key] = value
        save(self.path, self.record)

    def row(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row unless it is there."""
        if name in self.record["rows"]:
            return
        began = time.process_time()
        found = measure()
        found["judging_cpu_seconds"] = round(time.process_time() - began, 1)
        self.record["rows"][name] = found
        save(self.path, self.record)
        shown = {k: v for k, v in found.items() if isinstance(v, float | int)}
        print(f"seed {self.seed}: {name}: {shown}", flush=True)

    def file(self, name: str) -> Path:
        """Where a network's weights lie."""
        return self.work / f"{name.replace(' ', '-').replace('/', '_')}.safetensors"

    # --- training --------------------------------------------------------------------------------

    def trained(self, name: str, make: Callable[[], Trained]) -> Trained:
        """Train a network, or read it; its CPU seconds and its looks stay in the record."""
        path, times = self.file(name), self.record.setdefault("trainings", {})
        if name not in times or not path.exists():
            cpu, wall = time.process_time(), time.perf_counter()
            done = make()
            path.write_bytes(done.weights)
            path.with_suffix(".attacks").write_bytes(done.attacks)
            times[name] = {
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "wall_seconds": round(time.perf_counter() - wall, 1),
                "info": dict(done.info),
            }
            self.note("trainings", times)
            print(f"seed {self.seed}: {name}: {times[name]['cpu_seconds']} CPU s", flush=True)
        attacks = path.with_suffix(".attacks").read_bytes()
        return Trained(path.read_bytes(), attacks, times[name]["info"])

    def base(self, name: str, harden: HardenSettings, part: int = 1, **more: Any) -> Trained:
        """A base by a recipe, of a `part`-th of the steps; `more`: of its job."""
        population = self.settings.population
        population = replace(population, base_steps=population.base_steps // part)
        job = Job(self.task, "base", 0, 0, "base", population, None, (), harden=harden)
        return self.trained(name, lambda: run_job(replace(job, **more)))

    def forks(
        self, name: str, start: Trained, recipe: str, harden: HardenSettings
    ) -> list[Trained]:
        """Forks of a base; `repelled` ones learn the attacks on it and on those before them."""
        made: list[Trained] = []
        s = self.settings.population
        for index in range(FORKS):
            pools = tuple(t.attacks for t in (start, *made)) if recipe == "repelled" else ()
            job = Job(self.task, "member", index, 0, recipe, s, start.weights, pools, harden=harden)
            made.append(self.trained(f"{name} {index}", lambda job=job: run_job(job)))
        return made

    # --- judging ---------------------------------------------------------------------------------

    def model(self, weights: bytes, task: Task | None = None) -> Logits:
        return load_model(task or self.task, unpack(weights))

    def survivors(self, model: Logits, proposed: Tensor) -> Tensor:
        """Which examples are classified correctly, clean and under attack, (N,) bool."""
        x, y = self.examples.x, self.examples.y
        inside = project(proposed, x, self.task.eps, self.task.bounds)
        return (predict(model, x).argmax(1) == y) & (predict(model, inside).argmax(1) == y)

    def autoattack(self, model: Logits) -> Tensor:
        x, y = self.examples.x, self.examples.y
        found = autoattack(model, x, y, eps=self.task.eps, seed=self.seed, bounds=self.task.bounds)
        return self.survivors(model, found)

    def clean(self, model: Logits) -> float:
        test = self.task.splits.test
        return float((predict(model, test.x).argmax(1) == test.y).double().mean())

    def judge(self, models: Sequence[Logits], cpu: float, **more: Any) -> dict[str, Any]:
        """Clean accuracy on the whole test split, AutoAttack on N images of it."""
        alive = [self.autoattack(model) for model in models]
        each = [float(one.double().mean()) for one in alive]
        clean = [self.clean(model) for model in models]
        return {
            "clean": sum(clean) / len(clean),
            "autoattack": sum(each) / len(each),
            "autoattack_worst": min(each),
            "autoattack_each": each,
            "survivors": ["".join(str(int(b)) for b in one.tolist()) for one in alive],
            "networks": len(models),
            "cpu_seconds": cpu,
            "parameters": sum(p.numel() for p in models[0].parameters()),  # type: ignore[attr-defined]
            **more,
        }

    def transferred(self, known: Sequence[Logits], targets: Sequence[Logits]) -> dict[str, Any]:
        """Attack several networks jointly, score on others: by PGD with momentum, and by APGD.

        The stronger of the two counts, on average over the targets.
        """
        x, y = self.examples.x, self.examples.y
        draws = torch.Generator().manual_seed(seed_of(self.seed, "joint"))
        eps, bounds = self.task.eps, self.task.bounds
        proposals = {
            "MI-FGSM-40": pgd(
                known, x, y, eps=eps, steps=40, generator=draws, bounds=bounds, decay=0.75,
                step_size=eps / 8,
            ),
            "APGD-40": apgd(known, x, y, eps=eps, steps=40, seed=self.seed, bounds=bounds),
        }  # fmt: skip
        rates = {
            name: [float(self.survivors(t, found).double().mean()) for t in targets]
            for name, found in proposals.items()
        }
        means = {name: sum(each) / len(each) for name, each in rates.items()}
        best = min(means, key=means.__getitem__)
        return {"accuracy": means[best], "worst": min(rates[best]), "attack": best,
                "known": len(known), "targets": len(targets), "all": means}  # fmt: skip

    def population_row(self, made: Sequence[Trained], cpu: float) -> dict[str, Any]:
        """The last members of a population, and the joint attack on those before them."""
        models = [self.model(one.weights) for one in made]
        row = self.judge(models[-MEMBERS:], cpu)
        row["stale_joint"] = self.transferred(models[:-MEMBERS][-JOINT:], models[-MEMBERS:])
        return row

    # --- the rows --------------------------------------------------------------------------------

    def cpu(self, name: str) -> float:
        return self.record["trainings"][name]["cpu_seconds"]

    def recipes(self) -> None:
        """One network by each recipe, and the curve of compute."""
        for name, changes in RECIPES.items():
            made = self.base(name, replace(self.settings.harden, **changes), SHORT.get(name, 1))
            model = self.model(made.weights)
            self.row(name, lambda m=model, n=name: self.judge([m], self.cpu(n)))
        for part in PARTS if self.seed == 0 else ():
            name = f"PGD, 1/{part} of the steps"
            model = self.model(self.base(name, self.settings.harden, part).weights)
            self.row(name, lambda m=model, n=name: self.judge([m], self.cpu(n)))

    def populations(self) -> None:
        """Forks: repelled alone, adversarial alone."""
        for name, start, recipe, harden in (
            ("repelled", "standard", "repelled", HardenSettings()),
            ("adversarial", "PGD", "forks", self.settings.harden),
        ):
            first = replace(self.settings.harden, **RECIPES[start])
            made = self.forks(
                name, self.base(start, first, SHORT.get(start, 1)), recipe, harden
            )  # fmt: skip
            cpu = sum(self.cpu(f"{name} {i}") for i in range(FORKS)) / FORKS
            self.row(name, lambda made=made, cpu=cpu: self.population_row(made, cpu))

    def students(self) -> None:
        """A small network: taught by the robust one, trained alone, and the broken way."""
        task = replace(self.task, factory=student)
        for name, changes in STUDENTS.items():
            plain = "defensive" in name
            teacher = self.file("standard" if plain else "PGD")
            known = Teacher(teacher.read_bytes(), "g2d.tasks:mnist_robust_cnn")
            harden = replace(self.settings.harden, **changes)
            taught = known if "distil" in harden.recipe else None
            made = self.base(name, harden, 4 if plain else 1, task=task, teacher=taught)
            model = self.model(made.weights, task)
            self.row(name, lambda m=model, n=name: self.judge([m], self.cpu(n)))

    def chain(self) -> None:
        """The vault of the population `both`, and the generations made from it."""
        path = self.work / "vault"
        with g2d.Defence.create("mnist-robust", path, self.settings) as defence:
            if defence.vault.entry("base") is None:
                self.lend_base(defence)
            for stage, step in (
                ("population", lambda: defence.populate(SerialEngine())), ("fit", defence.fit),
            ):  # fmt: skip
                began = time.process_time()
                step()
                if f"{stage}_cpu_seconds" not in self.record:
                    self.note(f"{stage}_cpu_seconds", round(time.process_time() - began, 1))
            members = [
                Trained(defence.vault.read(e), b"", e.info) for e in defence.vault.entries("member")
            ]
            cpu = self.record["population_cpu_seconds"] / len(members)
            self.row("both", lambda: self.population_row(members, cpu))
            while (number := defence.vault.last_number()) <= CHAIN:
                defence.generate(1, seed=seed_of(self.seed, "chain"))
                print(f"seed {self.seed}: generation {number + 1}", flush=True)
            self.row("generated", lambda: self.generated(defence))

    def lend_base(self, defence: g2d.Defence) -> None:
        """Put the network of row PGD into the vault as its base: it is not trained twice."""
        made = self.base("PGD", self.settings.harden)
        defence.adopt_base(unpack(made.weights))

    def generated(self, defence: g2d.Defence) -> dict[str, Any]:
        """A chain of generations: white-box, stale joint, adaptive; and what one costs."""
        numbers = range(2, defence.vault.last_number() + 1)
        kept = [defence.generation(n) for n in numbers]
        models = [one.model() for one in kept]
        cpu = [one.manifest["cpu_seconds"] for one in kept]
        row = self.judge(models[-JUDGED:], sum(cpu) / len(cpu))
        base = defence.generation(1).model()
        exposed = [base, *models][:JOINT]
        row["stale_joint"] = self.transferred(exposed, models[JOINT - 1 :])
        row["stale_single"] = self.transferred([models[JOINT - 2]], models[JOINT - 1 :])
        row["adaptive"] = self.adaptive(defence, models)
        row["pgd_each"] = [self.pgd(model) for model in models]
        row["clean_each"] = [self.clean(model) for model in models]
        row["figures"] = [one.manifest["figures"] for one in kept]
        row["rejected"] = len(defence.vault.rejections())
        return row

    def pgd(self, model: Logits) -> float:
        x, y = self.examples.x, self.examples.y
        draws = torch.Generator().manual_seed(seed_of(self.seed, "pgd"))
        found = pgd(model, x, y, eps=self.task.eps, steps=40, generator=draws)
        return float(self.survivors(model, found).double().mean())

    def adaptive(self, defence: g2d.Defence, unseen: Sequence[Logits]) -> dict[str, Any]:
        """EOT over fresh samples of the generator; the most successful number of draws counts."""
        x, y = self.examples.x, self.examples.y
        curve = []
        for draws in (1, 5, 20):
            source = torch.Generator().manual_seed(seed_of(self.seed, "eot", draws))

            def drawn(count: int = draws, source: torch.Generator = source) -> list[Logits]:
                sample = defence.generator.sample(count, source)
                return [load_model(self.task, defence.generator.codec.decode(v)) for v in sample]

            found = eot_pgd(
                drawn, x, y, eps=self.task.eps, steps=30, generator=source,
                bounds=self.task.bounds, loss=LOSSES[0],
            )  # fmt: skip
            each = [float(self.survivors(m, found).double().mean()) for m in unseen]
            curve.append({"draws": draws, "accuracy": sum(each) / len(each), "worst": min(each)})
        best = min(curve, key=lambda point: point["accuracy"])
        return {**best, "curve": curve, "unseen": len(unseen)}

    def flips(self) -> None:
        """Single bit flips of float32 weights: with and without ranges, and clamped in training."""
        for name in ("standard", "standard, clamped", "PGD"):
            state = unpack(self.file(name).read_bytes())
            model = load_model(self.task, state)
            for limits in (None, Ranges.of(state)):
                key = f"flips, {name}{', in ranges' if limits else ''}"
                self.row(key, lambda m=model, s=state, r=limits: self.census(m, s, r))

    def census(self, model: Any, state: Any, limits: Ranges | None) -> dict[str, Any]:
        """The share of parameters with one costly flip, among 1,000 drawn; on the N images."""
        draws = torch.Generator().manual_seed(seed_of(self.seed, "flips"))
        found = flip_census(
            model, state, self.examples, parameters=1000, generator=draws, limits=limits
        )  # fmt: skip
        worst = max(toll.lost for toll in found.tolls)
        kept = {"accuracy": found.accuracy, "fragile": found.fragile, "relative": found.relative}
        return {name: asdict(rate) for name, rate in kept.items()} | {"worst_toll": worst}


def main() -> None:
    """Parse the command line and run seed after seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder of the four MNIST idx files")
    stages = ("recipes", "chain", "populations", "students", "flips")
    parser.add_argument("--only", choices=stages, nargs="+", default=stages, help="stages")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    root = Path(__file__).parents[1]
    parser.add_argument("--out", type=Path, default=root / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=root / "runs")
    given = parser.parse_args()
    calm()
    for seed in given.seeds:
        run = Run(seed, given.data, given.out, given.work)
        for stage in given.only:
            getattr(run, stage)()


if __name__ == "__main__":
    main()
