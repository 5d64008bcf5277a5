"""Evidence for robust members: every recipe side by side, and a chain generated from them.

    python -m benchmarks.robust --data ../shared/data/mnist --seeds 0 1 2

MNIST at eps = 0.3 under the inf-norm; needs the four idx files. A row that is in the seed's JSON is
not measured again, and networks lie in runs/robust-<seed>, so the run can be interrupted. To use
more cores run one process a seed, or stages of one seed (`--only`) side by side once `trunk`
is done. Writes benchmarks/results/robust-mnist-seed*.json; `benchmarks/tables.py` makes the tables.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import g2d
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.generation.ways import Maker
from benchmarks.robust import recipes
from benchmarks.robust.networks import Networks
from benchmarks.robust.plan import (
    CHAIN,
    DRAWS,
    JOINT,
    LONGER,
    MEMBERS,
    NEWEST,
    PARTS,
    PROPOSALS,
    RECIPES,
    STUDENTS,
    SUSPECTS,
    UNSEEN,
    WIDE,
    named,
)
from g2d.attacks.eot import LOSSES, eot_pgd
from g2d.core.engine import SerialEngine, configure_threads
from g2d.core.seeds import seed_of
from g2d.core.types import Logits
from g2d.errors import GenerationError
from g2d.protect.ranges import Ranges
from g2d.redteam.flip_census import flip_census
from g2d.settings import HardenSettings
from g2d.tasks.inference import load_model
from g2d.training.population import Trained
from g2d.weights.checkpoints import unpack
from g2d.weights.symmetry import permute


class Run(Networks):
    """The rows of one seed."""

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
        maker, judge = Maker(defence, self.seed), self.judge
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
