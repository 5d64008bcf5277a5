"""Evidence for robust members: every recipe side by side, and a chain generated from them.

    python -m benchmarks.robust --data ../shared/data/mnist --seeds 0 1 2

MNIST at eps = 0.3 under the inf-norm; needs the four idx files. A row that is in the seed's JSON is
not measured again, and networks lie in runs/robust-<seed>, so the run can be interrupted. To use
more cores run one process a seed, or stages of one seed (`--only`) side by side once `trunk`
is done. Writes benchmarks/results/robust-mnist-seed*.json; `benchmarks/tables.py` makes the tables.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json

import torch
from torch import Tensor, nn

import g2d
from benchmarks.common.measure import hardware, save
from benchmarks.common.places import RESULTS, ROOT, RUNS
from benchmarks.generation.ways import SpareMaker
from benchmarks.robust import recipes
from benchmarks.robust.judge import Judge
from g2d.attacks.eot import LOSSES, eot_pgd
from g2d.core.engine import SerialEngine, configure_threads
from g2d.core.seeds import seed_of
from g2d.core.types import Logits
from g2d.errors import GenerationError
from g2d.protect.ranges import Ranges
from g2d.redteam.flip_census import flip_census
from g2d.settings import HardenSettings, Settings, build
from g2d.tasks.builtin import load_task
from g2d.tasks.inference import load_model
from g2d.tasks.networks import mnist_robust_cnn
from g2d.tasks.task import Task
from g2d.training.population import Trained, TrainingJob, run_job
from g2d.training.recipes import Teacher
from g2d.weights.checkpoints import digest, unpack
from g2d.weights.symmetry import permute

N = 150  # test images of AutoAttack and of the transfer attacks
MANY = 500  # of AutoAttack on the rows FINER; the first N are the same
CHAIN = 30  # generations
NEWEST = 5  # judged by AutoAttack, without choice: the mean
SUSPECTS = 5  # judged too: those that PGD hurts most; the worst of both
JOINT = 20
MEMBERS = 4  # of each population, judged by AutoAttack: the last of each basin
FORKS = {"repelled": 6, "adversarial": 8}  # made for a row alone, in each basin one after another
PROPOSALS = 8  # the adaptive attacker's own
DRAWS = (5, 10, 20, 40)  # fresh samples a step of the adaptive attacker
UNSEEN = 100  # fresh samples that the adaptive attacks are scored on, too
PARTS = (4, 2)  # the base's steps, divided: the curve of compute
LONGER = ("student, RSLAD",)  # trained with twice the steps, too


WIDE = "PGD, twice the width"  # at half the steps: a way of robust_ways.py that was the best there


@dataclass(frozen=True)
class Recipe:
    """A row of one network: what differs from the task's hardening; its steps are divided."""

    harden: dict[str, Any]
    part: float = 1
    factory: Any = None
    teacher: str = ""


RECIPES = {
    WIDE: Recipe({}, 2, recipes.wide),
    "standard": Recipe({"recipe": ()}, 4),
    "standard, ordinary CNN": Recipe({"recipe": ()}, 4, recipes.plain),
    "standard, clamped": Recipe({"recipe": ("clamp",)}, 4),
    "FGSM at eps = 1 alone, ordinary CNN": Recipe(
        {"recipe": ("benchmarks.robust.recipes:blog",)}, 4, recipes.plain
    ),
    "FGSM-RS": Recipe({"method": "fgsm"}, 2),
    "PGD": Recipe({}),
    "TRADES": Recipe({"method": "trades"}, 2),
}
STUDENTS = {
    "student, standard": Recipe({"recipe": ()}, 4, recipes.student),
    "student, adversarial": Recipe({}, factory=recipes.student),
    "student, RSLAD": Recipe(
        {"recipe": ("distil", "adversarial"), "clean": 0.2},
        factory=recipes.student,
        teacher="PGD",
    ),
    "student, teacher of defensive distillation": Recipe(
        {"recipe": ("benchmarks.robust.recipes:hot",)}, 4, recipes.student
    ),
    "student, defensive distillation": Recipe(
        {"recipe": ("distil",), "temperature": 20.0},
        4,
        recipes.student,
        "student, teacher of defensive distillation",
    ),
}
FINER = ("PGD", WIDE)


COMMIT = subprocess.run(
    ["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
    cwd=ROOT, check=False,
).stdout.strip()  # fmt: skip


def named(name: str, part: float) -> str:
    """A row's name when its training is shortened, or stretched."""
    if part == 1:
        return name
    return f"{name}, 1/{part:g} of the steps" if part > 1 else f"{name}, {1 / part:g} × the steps"


class Run:
    """One seed: networks that are trained once, rows that are measured once."""

    networks: Mapping[str, Recipe] = RECIPES | STUDENTS

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
        many = self.task.splits.test.sample(MANY, draws)
        self.judge = Judge(self.task, many.take(range(N)), many, seed)

    def agree(self) -> None:
        """Refuse to mix rows of other settings or other sizes with those of now."""
        now = {
            "settings": self.settings.override(task__data="").to_toml(),
            "sizes": {name: globals()[name] for name in ("N", "MANY", "CHAIN", "JOINT")},
        }
        for key, value in now.items():
            if self.record.setdefault(key, value) != value:
                raise SystemExit(f"{self.path} is of other {key}: move it and runs/ away first")

    def note(self, *keys: str, value: Any) -> None:
        """Keep one result, beside those of other processes that measure the same seed."""
        with open(self.work / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                kept = {key: self.record[key] for key in ("settings", "sizes")}
                self.record = kept | json.loads(self.path.read_text())
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
        found["commit"] = COMMIT
        self.note("rows", name, value=found)
        shown = {k: v for k, v in found.items() if isinstance(v, float | int)}
        print(f"seed {self.seed}: {name}: {shown}", flush=True)

    def file(self, name: str) -> Path:
        """Where a network's weights lie."""
        return self.work / f"{name.replace(' ', '-').replace('/', '_')}.safetensors"

    # --- training --------------------------------------------------------------------------------

    def trained(self, name: str, make: Callable[[], Trained]) -> Trained:
        """Train a network, or read it; its CPU seconds and its looks stay in the record."""
        path, known = self.file(name), self.record["trainings"].get(name, {})
        if not known or not path.exists():
            cpu, wall = time.process_time(), time.perf_counter()
            done = make()
            path.write_bytes(done.weights)
            path.with_suffix(".attacks").write_bytes(done.attacks)
            took = {
                "sha256": digest(done.weights),
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "wall_seconds": round(time.perf_counter() - wall, 1),
                "info": dict(done.info),
            }
            if known and known["sha256"] != took["sha256"]:
                raise SystemExit(
                    f"{name}, trained again, is another network than that of the rows in "
                    f"{self.path} (other hardware?): move that file away and measure anew"
                )
            self.note("trainings", name, value=took)
            print(f"seed {self.seed}: {name}: {took['cpu_seconds']} CPU s", flush=True)
        attacks, weights = path.with_suffix(".attacks").read_bytes(), path.read_bytes()
        if digest(weights) != self.record["trainings"][name]["sha256"]:
            raise SystemExit(f"{path} is not the network of the rows in {self.path}: move one away")
        return Trained(weights, attacks, self.record["trainings"][name]["info"])

    def base(self, name: str, part: float = 1) -> Trained:
        """A network by the recipe of a row, of a `part`-th of its steps."""
        row = self.networks[name]
        task = replace(self.task, factory=row.factory) if row.factory else self.task
        harden = replace(self.settings.harden, **row.harden)
        population, share = self.settings.population, row.part * part
        population = replace(population, base_steps=round(population.base_steps / share))
        teacher = None
        if row.teacher:
            of = self.networks[row.teacher].factory or mnist_robust_cnn
            teacher = Teacher(
                self.file(row.teacher).read_bytes(), f"{of.__module__}:{of.__name__}"
            )  # fmt: skip
        job = TrainingJob(task, "base", 0, 0, "base", population, None, (), (), harden, teacher)
        key = named(name, part)
        made = self.trained(key, lambda: run_job(job))
        split = self.judge.many if key in FINER else None

        def judged() -> dict[str, Any]:
            row = self.judge.judge([self.model(made.weights, task)], self.cpu(key), split)
            return row | {"switched_to_pgd": made.info.get("switched_to_pgd")}

        self.row(key, judged)
        return made

    def forks(
        self, name: str, starts: Sequence[bytes], pools: Sequence[bytes], harden: HardenSettings
    ) -> list[Trained]:
        """Basins of forks, each fork of the one before it; all learn the attacks on the base."""
        recipe, s, made = "repelled" if pools else "forks", self.settings.population, []
        at, attacks = list(starts), list(pools)
        for index in range(FORKS[name]):
            basin = index % len(starts)
            job = TrainingJob(
                self.task,
                "member",
                index,
                basin,
                recipe,
                s,
                at[basin],
                tuple(attacks),
                harden=harden,
            )
            made.append(self.trained(f"{name} {index}", lambda job=job: run_job(job)))
            at[basin] = made[-1].weights
            attacks += [made[-1].attacks] if pools else []
        return made

    # --- judging ---------------------------------------------------------------------------------

    def model(self, weights: bytes, task: Task | None = None) -> nn.Module:
        return load_model(task or self.task, unpack(weights))

    def population_row(self, made: Sequence[Trained], cpu: float) -> dict[str, Any]:
        """The last members of a population, and a joint attack on all those before them."""
        models = [self.model(one.weights) for one in made]
        count = min(MEMBERS, len(models) // 2)
        last, known = models[-count:], models[:-count][-JOINT:]
        row = self.judge.judge(last, cpu)
        row["stale_joint"] = self.stale(last, self.judge.crafted(known), len(known))
        row["itself"] = self.judge.itself(last)
        return row

    def stale(
        self, targets: Sequence[Logits], proposals: Sequence[Tensor], known: int
    ) -> dict[str, Any]:
        """Targets under attacks that were crafted before any of them was live."""
        return self.judge.summary([self.judge.alive(t, proposals) for t in targets], known)

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
        """The curve of compute: the base's recipe, shortened; `recipes` makes its other points."""
        for part in PARTS:
            self.base("PGD", part)

    def fresh(self) -> None:
        """Fresh trainings of other seeds, short, long and wide, under the newest joint attack."""
        with g2d.Defence.open(self.work / "vault", write=False) as defence:
            newest = defence.vault.last_number()
            known = [defence.generation(n).model() for n in range(newest - JOINT, newest)]
        joint = self.judge.crafted(known)
        for name in (*(named("PGD", part) for part in (*PARTS, 1)), WIDE):
            task = replace(self.task, factory=recipes.wide) if name == WIDE else None
            files = sorted(self.work.parent.glob(f"robust-*/{self.file(name).name}"))
            made = [self.model(f.read_bytes(), task) for f in files if f.parent != self.work]

            def measure(made: list[nn.Module] = made) -> dict[str, Any]:
                stale = self.stale(made, joint, JOINT)
                return {"stale_joint": stale, "itself": self.judge.itself(made)}

            if made:
                self.row(f"fresh, {name}", measure)

    def populations(self) -> None:
        """Forks: repelled alone, adversarial alone; the latter in the basins of `both`."""
        with g2d.Defence.open(self.work / "vault") as defence:
            early = [defence.vault.read(e) for e in defence.vault.entries("early")]
        standard = self.base("standard")
        for name, starts, pools, harden in (
            ("repelled", [standard.weights], [standard.attacks], HardenSettings()),
            ("adversarial", early, [], self.settings.harden),
        ):
            made = self.forks(name, starts, pools, harden)
            cpu = sum(self.cpu(f"{name} {i}") for i in range(len(made))) / len(made)
            self.row(name, lambda made=made, cpu=cpu: self.population_row(made, cpu))

    def masking(self) -> None:
        """The base under one attack at a time, and under a growing budget."""
        model = self.model(self.base("PGD").weights)
        whole = self.record["rows"]["PGD"]["survivors"][0]
        self.row("masking", lambda: self.judge.masking(model, whole))

    def students(self) -> None:
        """A small network: taught by the robust one, trained alone, and the broken way."""
        for name in STUDENTS:
            self.base(name)
        for name in LONGER:
            self.base(name, 0.5)

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
                began = time.process_time()
                try:
                    defence.generate(1, seed=seed_of(self.seed, "chain", self.failures))
                except GenerationError as error:  # other draws next; their time is counted
                    print(f"seed {self.seed}: {error}", flush=True)
                    lost = self.record.get("failed_cpu_seconds", [])
                    took = round(time.process_time() - began, 1)
                    self.note("failed_cpu_seconds", value=[*lost, took])
                    if len(defence.vault.rejections()) > 5 * CHAIN:
                        raise
                    continue
                print(f"seed {self.seed}: generation {number + 1}", flush=True)
            self.row("generated", lambda: self.generated(defence))

    @property
    def failures(self) -> int:
        """How many calls of `generate` found no candidate."""
        return len(self.record.get("failed_cpu_seconds", []))

    def generated(self, defence: g2d.Defence) -> dict[str, Any]:
        """A chain of generations: white-box, stale, adaptive, controls; and what one costs."""
        judge, numbers = self.judge, range(2, defence.vault.last_number() + 1)
        kept = [defence.generation(n) for n in numbers]
        models = [one.model() for one in kept]
        hurt = [judge.pgd(model) for model in models]
        order = sorted(range(len(models) - NEWEST), key=hurt.__getitem__)[:SUSPECTS]
        spent = sum(one.manifest["cpu_seconds"] for one in kept)
        spent += sum(self.record.get("failed_cpu_seconds", []))
        row = judge.judge(models[-NEWEST:], spent / len(kept))
        suspects = judge.judge([models[i] for i in order], 0.0)
        row["suspects"] = {k: suspects[k] for k in ("autoattack_each", "survivors")}
        row["autoattack_worst"] = min(row["autoattack_worst"], suspects["autoattack_worst"])
        row["pgd_each"], row["clean_each"] = hurt, [judge.clean(model) for model in models]
        row["figures"] = [one.manifest["figures"] for one in kept]
        row["rejected"] = len(defence.vault.rejections())
        chain = [defence.generation(1).model(), *models]
        return row | self.transfers(defence, chain)

    def transfers(self, defence: g2d.Defence, chain: list[nn.Module]) -> dict[str, Any]:
        """The newest generations under attacks on those before them; the controls beside."""
        judge, last = self.judge, range(len(chain) - NEWEST, len(chain))
        joint = {i: judge.crafted(chain[i - JOINT : i]) for i in last}
        single = {i: judge.crafted([chain[i]]) for i in range(last[0] - JOINT, last[-1])}
        alive = {
            i: {j: judge.alive(chain[i], single[j]) for j in range(i - JOINT, i)} for i in last
        }
        some = {
            "stale_joint": [judge.alive(chain[i], joint[i]) for i in last],
            "stale_single": [alive[i][i - 1] for i in last],
            "stale_any": [torch.stack(list(alive[i].values())).all(0) for i in last],
        }
        found: dict[str, Any] = {
            name: judge.summary(one, 1 if name == "stale_single" else JOINT)
            for name, one in some.items()
        }
        found["itself"] = judge.itself([chain[i] for i in last])
        early = judge.crafted(chain[:JOINT])  # and scored on all that come later
        found["stale_early"] = self.stale(chain[JOINT:], early, JOINT)
        found["adaptive"] = self.adaptive(defence, chain, early)
        found["controls"] = self.controls(defence, chain, joint[last[-1]])
        return found

    def controls(
        self, defence: g2d.Defence, chain: list[nn.Module], joint: list[Tensor]
    ) -> dict[str, Any]:
        """What costs nothing, or a whole training, in the place of the newest generation."""
        maker, judge = SpareMaker(defence, self.seed), self.judge
        units, draws = defence._judge.chain, self.draws("permutation")
        orders = [torch.randperm(c.units, generator=draws) for c in units]
        others = sorted(self.work.parent.glob("robust-*/PGD.safetensors"))
        fresh = [unpack(p.read_bytes()) for p in others if p.parent != self.work]
        made = {
            "a permuted copy of it": [permute(chain[-2].state_dict(), units, orders)],
            "soups of members": maker.soup(MEMBERS)[0],
            "members with noise": maker.noise(MEMBERS)[0],
            "samples without guidance": maker.unguided(MEMBERS)[0],
            "fresh trainings, other seeds": fresh,
        }
        targets = {"the newest exposed, had it stayed": [chain[-2]]}
        targets |= {k: [load_model(self.task, one) for one in v] for k, v in made.items() if v}
        return {
            name: {"clean": sum(map(judge.clean, models)) / len(models),
                   "stale_joint": self.stale(models, joint, JOINT), "itself": judge.itself(models)}
            for name, models in targets.items()
        }  # fmt: skip

    def adaptive(
        self, defence: g2d.Defence, chain: Sequence[nn.Module], early: list[Tensor]
    ) -> dict[str, Any]:
        """EOT by an attacker who owns the generator; all but the first twenty are unborn.

        "samples": averages over fresh unguided samples, as many a step as DRAWS says. "everything":
        also owns the procedure and the first twenty exposed; averages over its own guided proposals
        for what comes next, over those exposed and over fresh samples. Both losses. The accuracy is
        of what survives all of these attacks and the joint one on the first twenty.
        """
        g = defence.generator
        recent = [defence.exposure(n) for n in range(1, JOINT + 1)]
        own = [
            self.decoded(g, g.propose(self.task, recent, self.settings.guidance, self.draws(i)))
            for i in range(PROPOSALS)
        ]
        pool, proposals, parts = [*own, *chain[:JOINT]], [], []
        tries = [("samples", n, 0) for n in DRAWS] + [("everything", 5, 10), ("everything", 10, 20)]
        for name, fresh, known in tries:
            for loss in LOSSES if (fresh, known) in ((10, 0), (5, 10)) else LOSSES[:1]:
                crafted = self.eot(g, pool, fresh, known, loss)
                proposals.append(crafted)
                told = self.stale(chain[JOINT:], [crafted], known)
                parts.append({"attacker": name, "fresh": fresh, "loss": loss} | told)
        proposals += early
        draws = [self.decoded(g, v) for v in g.sample(UNSEEN, self.draws("unseen"))]
        fresh_ones = self.stale(draws, proposals, JOINT)
        for one in (fresh_ones, *parts):
            del one["survivors"]
        return self.stale(chain[JOINT:], proposals, JOINT) | {
            "parts": parts, "unseen": len(chain) - JOINT, "fresh_samples": fresh_ones,
        }  # fmt: skip

    def eot(self, g: Any, pool: list[nn.Module], fresh: int, known: int, loss: str) -> Tensor:
        """One attack of the adaptive attacker: 40 steps, networks drawn anew at each."""
        draws = self.draws(fresh, known, loss)
        x, y = self.judge.examples.x, self.judge.examples.y

        def drawn() -> list[nn.Module]:
            some = torch.randperm(len(pool), generator=draws)[:known].tolist()
            new = [self.decoded(g, v) for v in g.sample(fresh, draws)]
            return [*(pool[i] for i in some), *new]

        return eot_pgd(
            drawn, x, y, eps=self.task.eps, steps=40, generator=draws, bounds=self.task.bounds,
            loss=loss,
        )  # fmt: skip

    def draws(self, *name: object) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, "eot", *name))

    def decoded(self, generator: Any, v: Tensor) -> nn.Module:
        return load_model(self.task, generator.to_state(v))

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
            model, state, self.judge.examples, parameters=1000, generator=draws, limits=limits
        )  # fmt: skip
        worst = max(toll.lost for toll in found.tolls)
        kept = {"accuracy": found.accuracy, "fragile": found.fragile, "relative": found.relative}
        return {name: asdict(rate) for name, rate in kept.items()} | {"worst_toll": worst}


STAGES = ("trunk", "chain", "students", "recipes", "masking", "populations", "flips", "compute",
          "fresh")  # fmt: skip


def main(
    run: type[Run] = Run,
    stages: Sequence[str] = STAGES,
    seeds: Sequence[int] = (0, 1, 2),
    what: str = __doc__,
) -> None:
    """Parse the command line and run stage after stage of each seed."""
    parser = argparse.ArgumentParser(description=what.split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="folder of the four MNIST idx files")
    parser.add_argument("--only", choices=stages, nargs="+", default=stages, help="stages")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=RUNS)
    given = parser.parse_args()
    configure_threads()
    for seed in given.seeds:
        one = run(seed, given.data, given.out, given.work)
        for stage in given.only:
            getattr(one, stage)()


if __name__ == "__main__":
    main()
