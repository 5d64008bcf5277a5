"""Evidence for robust members: every recipe side by side, and a chain generated from them.

    python benchmarks/robust.py --data ../shared/data/mnist --seeds 0 1 2

MNIST at eps = 0.3 under the inf-norm; needs the four idx files. A row that is in the seed's JSON is
not measured again, and networks lie in runs/robust-<seed>, so the run can be interrupted. To use
more cores run one process a seed, or stages of one seed (`--only`) side by side once `trunk`
is done. Writes benchmarks/results/robust-mnist-seed*.json; `benchmarks/tables.py` makes the tables.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import json

import torch
from torch import Tensor

import g2d
import robust_recipes
from g2d.attacks import apgd, autoattack, pgd, project
from g2d.attacks.eot import LOSSES, eot_pgd
from g2d.census import flip_census
from g2d.data import Split
from g2d.engine import SerialEngine, calm
from g2d.errors import GenerationError
from g2d.harden import Teacher
from g2d.networks import mnist_robust_cnn
from g2d.population import Job, Trained, run_job, seed_of
from g2d.protect.ranges import Ranges
from g2d.settings import HardenSettings, Settings, build
from g2d.tasks import Task, load_task
from g2d.train import Logits, load_model, predict
from g2d.weights import unpack
from measure import hardware, save

N = 200  # test images of AutoAttack and of the transfer attacks
MANY = 500  # of AutoAttack on the base
CHAIN = 30  # generations
NEWEST = 5  # judged by AutoAttack, without choice: the mean
SUSPECTS = 5  # judged too: those that PGD hurts most; the worst of both
JOINT = 20
MEMBERS = 2  # of each population, judged by AutoAttack
FORKS = 6  # of the populations that are made for a row alone
PROPOSALS = 8  # the adaptive attacker's own
PARTS = (8, 4, 2)  # the base's training, shortened: the curve of compute


@dataclass(frozen=True)
class Recipe:
    """A row of one network: what differs from the task's hardening, and a share of its steps."""

    harden: dict[str, Any]
    part: int = 1
    factory: Any = None
    teacher: str = ""


RECIPES = {
    "standard": Recipe({"recipe": ()}, 4),
    "standard, clamped": Recipe({"recipe": ("clamp",)}, 4),
    "FGSM at eps = 1 alone, ordinary CNN": Recipe(
        {"recipe": ("robust_recipes:blog",)}, 4, robust_recipes.plain
    ),
    "FGSM-RS, unguarded": Recipe({"method": "fgsm", "guard": "off", "checks": 0}, 2),
    "FGSM-RS": Recipe({"method": "fgsm"}, 2),
    "PGD": Recipe({}),
    "TRADES": Recipe({"method": "trades"}, 2),
}
STUDENTS = {
    "student, adversarial": Recipe({}, factory=robust_recipes.student),
    "student, RSLAD": Recipe(
        {"recipe": ("distil", "adversarial"), "clean": 0.2},
        factory=robust_recipes.student,
        teacher="PGD",
    ),
    "student, teacher of defensive distillation": Recipe(
        {"recipe": ("robust_recipes:hot",)}, 4, robust_recipes.student
    ),
    "student, defensive distillation": Recipe(
        {"recipe": ("distil",), "temperature": 20.0},
        4,
        robust_recipes.student,
        "student, teacher of defensive distillation",
    ),
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
        self.record.setdefault("trainings", {})
        self.task = load_task("mnist-robust", data)
        tables = {name: dict(table) for name, table in self.task.settings.items()}
        tables["task"] = {"name": "mnist-robust", "data": data}
        settings = build(Settings, tables, "the task's settings")
        self.settings = settings.override(population__seed=seed)
        self.agree()
        draws = torch.Generator().manual_seed(seed_of(seed, "examples"))
        self.many = self.task.splits.test.sample(MANY, draws)
        self.examples = self.many.take(range(N))

    def agree(self) -> None:
        """Refuse to mix rows of other settings with those of now."""
        known = self.settings.override(task__data="").to_toml()
        if self.record.setdefault("settings", known) != known:
            raise SystemExit(f"{self.path} is of other settings: move it and runs/ away first")

    def note(self, *keys: str, value: Any) -> None:
        """Keep one result, beside those of other processes that measure the same seed."""
        with open(self.work / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                self.record = json.loads(self.path.read_text())
            place = self.record
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = value
            save(self.path, self.record)

    def row(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row unless it is there."""
        if name in self.record["rows"]:
            return
        began = time.process_time()
        found = measure()
        found["judging_cpu_seconds"] = round(time.process_time() - began, 1)
        self.note("rows", name, value=found)
        shown = {k: v for k, v in found.items() if isinstance(v, float | int)}
        print(f"seed {self.seed}: {name}: {shown}", flush=True)

    def file(self, name: str) -> Path:
        """Where a network's weights lie."""
        return self.work / f"{name.replace(' ', '-').replace('/', '_')}.safetensors"

    # --- training --------------------------------------------------------------------------------

    def trained(self, name: str, make: Callable[[], Trained]) -> Trained:
        """Train a network, or read it; its CPU seconds and its looks stay in the record."""
        path = self.file(name)
        if name not in self.record["trainings"] or not path.exists():
            cpu, wall = time.process_time(), time.perf_counter()
            done = make()
            path.write_bytes(done.weights)
            path.with_suffix(".attacks").write_bytes(done.attacks)
            took = {
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "wall_seconds": round(time.perf_counter() - wall, 1),
                "info": dict(done.info),
            }
            self.note("trainings", name, value=took)
            print(f"seed {self.seed}: {name}: {took['cpu_seconds']} CPU s", flush=True)
        attacks = path.with_suffix(".attacks").read_bytes()
        return Trained(path.read_bytes(), attacks, self.record["trainings"][name]["info"])

    def base(self, name: str, part: int = 1) -> Trained:
        """A network by the recipe of a row, of a `part`-th of its steps."""
        row = (RECIPES | STUDENTS)[name]
        task = replace(self.task, factory=row.factory) if row.factory else self.task
        harden = replace(self.settings.harden, **row.harden)
        population, share = self.settings.population, row.part * part
        population = replace(population, base_steps=population.base_steps // share)
        teacher = None
        if row.teacher:
            of = (RECIPES | STUDENTS)[row.teacher].factory or mnist_robust_cnn
            teacher = Teacher(
                self.file(row.teacher).read_bytes(), f"{of.__module__}:{of.__name__}"
            )  # fmt: skip
        job = Job(task, "base", 0, 0, "base", population, None, (), (), harden, teacher)
        key = name if part == 1 else f"{name}, 1/{part} of the steps"
        made = self.trained(key, lambda: run_job(job))
        split = self.many if name == "PGD" else self.examples
        self.row(key, lambda: self.judge([self.model(made.weights, task)], self.cpu(key), split))
        return made

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

    def survivors(self, model: Logits, proposed: Tensor, split: Split | None = None) -> Tensor:
        """Which examples are classified correctly, clean and under attack, (N,) bool."""
        x, y = (split or self.examples).x, (split or self.examples).y
        inside = project(proposed, x, self.task.eps, self.task.bounds)
        return (predict(model, x).argmax(1) == y) & (predict(model, inside).argmax(1) == y)

    def autoattack(self, model: Logits, split: Split) -> Tensor:
        x, y, bounds = split.x, split.y, self.task.bounds
        found = autoattack(model, x, y, eps=self.task.eps, seed=self.seed, bounds=bounds)
        return self.survivors(model, found, split)

    def clean(self, model: Logits) -> float:
        test = self.task.splits.test
        return float((predict(model, test.x).argmax(1) == test.y).double().mean())

    def judge(
        self, models: Sequence[Logits], cpu: float, split: Split | None = None
    ) -> dict[str, Any]:
        """Clean accuracy on the whole test split, AutoAttack on N images of it, or on a split."""
        alive = [self.autoattack(model, split or self.examples) for model in models]
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
            "images": len(alive[0]),
        }

    def transferred(self, known: Sequence[Logits], target: Logits) -> float:
        """Attack several networks jointly, score on another: accuracy on what survives both.

        Both: PGD with momentum, and APGD, 40 steps each; as in the red team.
        """
        x, y, eps, bounds = self.examples.x, self.examples.y, self.task.eps, self.task.bounds
        draws = torch.Generator().manual_seed(seed_of(self.seed, "joint"))
        momentum = pgd(
            known, x, y, eps=eps, steps=40, generator=draws, bounds=bounds, decay=1.0,
            step_size=eps / 4,
        )  # fmt: skip
        other = apgd(known, x, y, eps=eps, steps=40, seed=self.seed, bounds=bounds)
        alive = self.survivors(target, momentum) & self.survivors(target, other)
        return float(alive.double().mean())

    def stale(self, pairs: Sequence[tuple[Sequence[Logits], Logits]]) -> dict[str, Any]:
        """Mean and worst accuracy of targets under attacks on the networks known before each."""
        each = [self.transferred(known, target) for known, target in pairs]
        return {"accuracy": sum(each) / len(each), "worst": min(each), "each": each,
                "known": max(len(known) for known, _ in pairs)}  # fmt: skip

    def population_row(self, made: Sequence[Trained], cpu: float) -> dict[str, Any]:
        """The last members of a population, and joint attacks on those before each."""
        models = [self.model(one.weights) for one in made]
        row = self.judge(models[-MEMBERS:], cpu)
        last = range(len(models) - MEMBERS, len(models))
        row["stale_joint"] = self.stale([(models[:i][-JOINT:], models[i]) for i in last])
        return row

    # --- the rows --------------------------------------------------------------------------------

    def cpu(self, name: str) -> float:
        return self.record["trainings"][name]["cpu_seconds"]

    def trunk(self) -> None:
        """The network that all other stages begin with."""
        self.base("PGD")

    def recipes(self) -> None:
        """One network by each recipe."""
        for name in RECIPES:
            self.base(name)

    def compute(self) -> None:
        """The curve of compute: the base's recipe, shortened."""
        for part in PARTS:
            self.base("PGD", part)

    def populations(self) -> None:
        """Forks: repelled alone, adversarial alone."""
        for name, start, recipe, harden in (
            ("repelled", "standard", "repelled", HardenSettings()),
            ("adversarial", "PGD", "forks", self.settings.harden),
        ):
            made = self.forks(name, self.base(start), recipe, harden)
            cpu = sum(self.cpu(f"{name} {i}") for i in range(FORKS)) / FORKS
            self.row(name, lambda made=made, cpu=cpu: self.population_row(made, cpu))

    def students(self) -> None:
        """A small network: taught by the robust one, trained alone, and the broken way."""
        for name in STUDENTS:
            self.base(name)

    def chain(self) -> None:
        """The vault of the population `both`, and the generations made from it."""
        base = self.base("PGD")
        path = self.work / "vault"
        with g2d.Defence.create("mnist-robust", path, self.settings) as defence:
            defence.adopt_base(unpack(base.weights))  # the network of row PGD, not trained twice
            defence.populate(SerialEngine())
            began = time.process_time()
            defence.fit()
            if "fit_cpu_seconds" not in self.record:
                self.note("fit_cpu_seconds", value=round(time.process_time() - began, 1))
            entries = defence.vault.entries
            early = [e.info["cpu_seconds"] for e in entries("early")]
            self.note("early_cpu_seconds", value=early)
            members = [Trained(defence.vault.read(e), b"", e.info) for e in entries("member")]
            cpu = sum(one.info["cpu_seconds"] for one in members) / len(members)
            self.row("both", lambda: self.population_row(members, cpu))
            while (number := defence.vault.last_number()) <= CHAIN:
                try:
                    defence.generate(1, seed=seed_of(self.seed, "chain"))
                except GenerationError as error:  # other draws next; rejected ones are counted
                    print(f"seed {self.seed}: {error}", flush=True)
                    if len(defence.vault.rejections()) > 5 * CHAIN:
                        raise
                    continue
                print(f"seed {self.seed}: generation {number + 1}", flush=True)
            self.row("generated", lambda: self.generated(defence))

    def generated(self, defence: g2d.Defence) -> dict[str, Any]:
        """A chain of generations: white-box, stale joint, adaptive; and what one costs."""
        numbers = range(2, defence.vault.last_number() + 1)
        kept = [defence.generation(n) for n in numbers]
        models = [one.model() for one in kept]
        hurt = [self.pgd(model) for model in models]
        order = sorted(range(len(models) - NEWEST), key=hurt.__getitem__)[:SUSPECTS]
        cpu = [one.manifest["cpu_seconds"] for one in kept]
        row = self.judge(models[-NEWEST:], sum(cpu) / len(cpu))
        suspects = self.judge([models[i] for i in order], 0.0)
        row["suspects"] = {k: suspects[k] for k in ("autoattack_each", "survivors")}
        row["autoattack_worst"] = min(row["autoattack_worst"], suspects["autoattack_worst"])
        chain = [defence.generation(1).model(), *models]
        last = range(len(chain) - 2 * NEWEST + 1, len(chain), 2)
        row["stale_joint"] = self.stale([(chain[i - JOINT : i], chain[i]) for i in last])
        row["stale_single"] = self.stale([(chain[i - 1 : i], chain[i]) for i in last])
        row["adaptive"] = self.adaptive(defence, chain)
        row["pgd_each"], row["clean_each"] = hurt, [self.clean(model) for model in models]
        row["figures"] = [one.manifest["figures"] for one in kept]
        row["rejected"] = len(defence.vault.rejections())
        return row

    def pgd(self, model: Logits) -> float:
        x, y = self.examples.x, self.examples.y
        draws = torch.Generator().manual_seed(seed_of(self.seed, "pgd"))
        found = pgd(model, x, y, eps=self.task.eps, steps=40, generator=draws)
        return float(self.survivors(model, found).double().mean())

    def adaptive(self, defence: g2d.Defence, chain: Sequence[Logits]) -> dict[str, Any]:
        """EOT by two attackers who own the generator, when all but the last are exposed or unborn.

        "samples" averages over fresh unguided samples. "everything" also owns the procedure and the
        first twenty exposed: averages over its own guided proposals for what comes next, over
        those exposed and over fresh samples. Both losses; the most successful attack counts.
        """
        unseen = chain[JOINT:]
        recent = [defence.exposure(n) for n in range(1, JOINT + 1)]
        g = defence.generator
        own = [
            self.decoded(g, g.propose(self.task, recent, self.settings.guidance, self.draws(i)))
            for i in range(PROPOSALS)
        ]
        pool, x, y, found = [*own, *chain[:JOINT]], self.examples.x, self.examples.y, []
        for name, fresh, known in (("samples", 10, 0), ("everything", 5, 10)):
            for loss in LOSSES:
                draws = self.draws(name, loss)

                def drawn(
                    fresh: int = fresh, known: int = known, draws: torch.Generator = draws
                ) -> list[Logits]:
                    some = torch.randperm(len(pool), generator=draws)[:known].tolist()
                    return [*(pool[i] for i in some),
                            *(self.decoded(g, v) for v in g.sample(fresh, draws))]  # fmt: skip

                crafted = eot_pgd(
                    drawn, x, y, eps=self.task.eps, steps=40, generator=draws,
                    bounds=self.task.bounds, loss=loss,
                )  # fmt: skip
                each = [float(self.survivors(m, crafted).double().mean()) for m in unseen]
                found.append({"attacker": name, "loss": loss, "worst": min(each),
                              "accuracy": sum(each) / len(each)})  # fmt: skip
        best = min(found, key=lambda one: one["accuracy"])
        return {**best, "all": found, "unseen": len(unseen)}

    def draws(self, *name: object) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, "eot", *name))

    def decoded(self, generator: Any, v: Tensor) -> Logits:
        return load_model(self.task, generator.codec.decode(v))

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
    stages = ("trunk", "chain", "students", "recipes", "populations", "flips", "compute")
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
