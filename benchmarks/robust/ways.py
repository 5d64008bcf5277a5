"""Ways towards targets that benchmarks.robust missed: tried on the gate split, never on test.

    python -m benchmarks.robust.ways --data ../shared/data/mnist

One network a way, of one seed; three attacks on a thousand images (APGD on cross-entropy and on the
difference of logits ratio, 100 steps each; Square, 1,000 queries). `basins` asks what a basin that
the attacker has never seen is worth. Reads the networks of benchmarks.robust where they lie, in
runs/robust-<seed>, and trains them where they do not. Writes
benchmarks/results/robust-ways-seed*.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.results import save

from benchmarks.robust import run as robust  # isort: skip  # sets the threads before torch is imported

import torch
from torch import Tensor

import g2d
from benchmarks.robust import recipes
from benchmarks.robust.judge import Judge
from benchmarks.robust.plan import LONGER, WIDE, Recipe
from g2d.attacks import apgd
from g2d.attacks.autoattack import square
from g2d.core.seeds import seed_of
from g2d.core.types import Logits
from g2d.tasks.inference import load_model, predict
from g2d.tasks.splits import Split
from g2d.weights.checkpoints import unpack

LOOKED = 1000  # images of the gate split
BASINS = 400  # of them for attacks on many networks


def taught(**changes: Any) -> Recipe:
    """A student's half training by RSLAD, changed."""
    harden = {"recipe": ("distil", "adversarial"), **changes}
    return Recipe(harden, 2, recipes.student, "PGD")


WAYS = {
    # towards 93 % of one model; others are rows of benchmarks.robust
    "FGSM-RS, all steps": Recipe({"method": "fgsm"}),
    # towards a student of 95 %; a half of the steps
    "student, RSLAD, clean 0": taught(),
    "student, RSLAD, half of the labels": taught(soft=0.5),
}
HALVES = ("PGD", "student, adversarial", "student, RSLAD")  # what ways of half the steps compare to
WHOLE = ("PGD", WIDE, "TRADES", "FGSM-RS", "student, adversarial", "student, RSLAD")


class Look(Judge):
    """Judges on images of the gate split; cheaper attacks, for one choice among many."""

    def clean(self, model: Logits) -> float:
        """Accuracy on the whole gate split."""
        gate = self.task.splits.gate
        return float((predict(model, gate.x).argmax(1) == gate.y).double().mean())

    def autoattack(self, model: Logits, split: Split) -> Tensor:
        """What survives APGD on two losses and Square, (n,) bool."""
        x, y, eps, seed, bounds = split.x, split.y, self.task.eps, self.seed, self.task.bounds
        alive = torch.ones(len(y), dtype=torch.bool)
        for craft in (
            *(
                partial(
                    apgd,
                    model,
                    eps=eps,
                    steps=100,
                    seed=seed,
                    bounds=bounds,
                    loss=loss,
                    keep="flip",
                )
                for loss in ("ce", "dlr")
            ),
            lambda x, y: square(model, x, y, eps=eps, queries=1000, seed=seed, bounds=bounds),
        ):
            left = Split(x[alive], y[alive])
            alive[alive.clone()] = self.survivors(model, craft(left.x, left.y), left)
        return alive


class Ways(robust.Run):
    """One seed of the ways; shares the trained networks of `benchmarks.robust`, not its rows."""

    networks: Mapping[str, Recipe] = {**robust.Run.networks, **WAYS}

    def __init__(self, seed: int, data: str, out: Path, work: Path) -> None:
        super().__init__(seed, data, out, work)
        shared, self.path = self.record, out / f"robust-ways-seed{seed}.json"
        self.record = {**shared, "rows": {}, "trainings": dict(shared["trainings"])}
        if self.path.exists():
            self.record = json.loads(self.path.read_text())
            self.record["trainings"] = shared["trainings"] | self.record["trainings"]
        kept = ("seed", "hardware", "settings", "sizes", "rows", "trainings")
        self.record = {key: self.record[key] for key in kept}
        draws = torch.Generator().manual_seed(seed_of(seed, "ways"))
        looked = self.task.splits.gate.sample(LOOKED, draws)
        self.judge = Look(self.task, looked, looked, seed)
        save(self.path, self.record)

    def ways(self) -> None:
        """Every way, and what it is compared to."""
        for name in WHOLE:
            self.base(name)
        for name in HALVES:
            self.base(name, 2)
        for name in WAYS:
            self.base(name)
        for name in LONGER:
            self.base(name, 0.5)

    def basins(self) -> None:
        """The members of each basin, under joint attacks on as many others, of it and elsewhere."""
        with g2d.Defence.open(self.work / "vault") as defence:
            entries = defence.vault.entries("member")
            basin = [int(e.info["basin"]) for e in entries]
            models = [load_model(self.task, unpack(defence.vault.read(e))) for e in entries]
        some = self.judge.examples.take(range(BASINS))
        judge = Look(self.task, some, some, self.seed)
        # Targets come from the last wave; nobody in their wave is known. As many networks, and as
        # many of each earlier wave, in both pools: only whether the target's basin is among them
        # differs (one of another basin gives way to each of its own).
        waves = [range(i, i + len(set(basin))) for i in range(0, len(basin), len(set(basin)))]
        for held in sorted(set(basin)):
            known, new = [], []
            for place, wave in enumerate(waves[:-1]):
                others = [i for i in wave if basin[i] != held]
                new += others
                known += [i for i in wave if basin[i] == held]
                known += [i for i in others if i != others[place % len(others)]]
            target = next(models[i] for i in waves[-1] if basin[i] == held)
            pools = [[models[i] for i in pool] for pool in (known, new)]
            self.row(f"basin {held}", partial(self.member, judge, target, *pools))

    def member(
        self,
        judge: Judge,
        target: Logits,
        known: Sequence[Logits],
        new: Sequence[Logits],
    ) -> dict[str, Any]:
        """One member under joint attacks on others: with, and without those of its own basin."""
        pools = {"its basin is known": known, "its basin is new": new, "itself": [target]}
        return {
            name: judge.summary([judge.alive(target, judge.crafted(pool))], len(pool))
            for name, pool in pools.items()
        }


if __name__ == "__main__":
    robust.main(Ways, ("ways", "basins"), [0], __doc__)
