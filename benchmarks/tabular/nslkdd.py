"""Network intrusion detection: stale attacks within what a flow's sender can change.

    python -m benchmarks.tabular.nslkdd --data ../shared/data/nslkdd --seed 0

Population, generator, twenty rotations and their rivals on the flows of NSL-KDD; results in
benchmarks/results/nslkdd-seed*.json. The attacker has read the last ten networks of a chain and
attacks them jointly; the next one is scored. Both retrainings are timed apart from the story.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import g2d
from benchmarks.common.places import RESULTS
from benchmarks.common.results import commit, record, save
from g2d.attacks import pgd
from g2d.core.seeds import seed_of
from g2d.core.types import Logits
from g2d.errors import GenerationError
from g2d.redteam.controls import FittedMembers, soups
from g2d.redteam.scoring import accuracy_rate, attack_rate, share
from g2d.settings import HardenSettings, Settings, build
from g2d.tasks.inference import load_model, predict
from g2d.tasks.nslkdd import alarms, detection_rate, held_out, threshold
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import Batches
from g2d.training.recipes.adversarial import stale as learn_stale
from g2d.training.recipes.hardened import HardenedTraining

EXPOSED = 10  # networks that the attacker has read
ROTATIONS = 20
ASKED = 3  # times for one rotation, before a chain ends
FLOWS = 1000  # of each set, attacked
STEPS = 40
TRIES = {"PGD": None, "MI-FGSM": 1.0}  # name: decay of the accumulated gradient


class Jury:
    """Scores networks on held-out training flows and on the official test flows."""

    def __init__(self, task: Task, held: Split, seed: int) -> None:
        self.task, self.seed = task, seed
        self.sets = {"held_out": held, "test": task.splits.test}
        self.some = {
            name: split.sample(FLOWS, torch.Generator().manual_seed(seed_of(seed, name)))
            for name, split in self.sets.items()
        }

    def clean(self, model: Logits) -> dict[str, Any]:
        """Accuracy and detection; on the test flows also with the threshold of the gate split."""
        gate = self.task.splits.gate
        above = threshold(predict(model, gate.x), gate.y)
        found: dict[str, Any] = {}
        for name, split in self.sets.items():
            logits = predict(model, split.x)
            found_there, false = alarms(logits, split.y, above)
            found[name] = {
                "accuracy": accuracy_rate(model, split).value,
                "detection": detection_rate(logits, split.y),
                "gate_threshold": {"detection": found_there, "false_alarms": false},
            }
        return found

    def craft(self, models: Sequence[Logits], *name: object) -> dict[str, list[Tensor]]:
        """Propose jointly against several networks, by every try."""
        return {
            key: [
                pgd(
                    models, split.x, split.y, eps=self.task.eps, steps=STEPS, decay=decay,
                    bounds=self.task.reach, step_size=self.task.eps / 8,
                    generator=torch.Generator().manual_seed(seed_of(self.seed, key, *name)),
                )
                for decay in TRIES.values()
            ]
            for key, split in self.some.items()
        }  # fmt: skip

    def asr(self, model: Logits, proposals: Mapping[str, list[Tensor]]) -> dict[str, Any]:
        """ASR of each set's strongest try: of all flows, and of attacks alone (evasion)."""
        found: dict[str, Any] = {}
        for name, made in proposals.items():
            split = self.some[name]
            attacks = (split.y == 1).nonzero()[:, 0]
            found[name] = {
                "all": max(self._rate(model, p, split) for p in made),
                "attacks": max(
                    self._rate(model, p[attacks], split.take(attacks)) for p in made
                ),
            }  # fmt: skip
        return found

    def _rate(self, model: Logits, proposed: Tensor, split: Split) -> float:
        return attack_rate(model, proposed, split, self.task.eps, self.task.reach).value

    def chain(self, models: Sequence[Logits]) -> dict[str, Any]:
        """Mean and worst over the last networks, each attacked from the ten before it."""
        targets = range(EXPOSED, len(models))
        each = [
            self.asr(models[t], self.craft(models[t - EXPOSED : t], "joint", t)) for t in targets
        ]
        return self._told([models[t] for t in targets], each)

    def single(
        self, models: Sequence[Logits], proposals: Mapping[str, list[Tensor]]
    ) -> dict[str, Any]:
        """Mean and worst over networks that all meet the same proposals."""
        return self._told(models, [self.asr(model, proposals) for model in models])

    def _told(self, models: Sequence[Logits], each: Sequence[Any]) -> dict[str, Any]:
        clean = [self.clean(model) for model in models]
        return {"networks": len(models), "clean": _means(clean), "stale": _means(each),
                "worst": _means(each, max)}  # fmt: skip


def _means(rows: Sequence[Any], fold: Callable[..., float] = statistics.mean) -> Any:
    """Fold dictionaries of one shape, number by number."""
    if not isinstance(rows[0], Mapping):
        return fold(rows)
    return {key: _means([row[key] for row in rows], fold) for key in rows[0]}


def retrained(
    defence: g2d.Defence, seed: int, harden: HardenSettings, pools: Sequence[Split] = ()
) -> nn.Module:
    """Train anew with the steps of the base: hardened, or on the attacks that guidance has too."""
    task, s = defence.task, defence.settings.population
    batches = Batches(task, task.splits.train, s.batch, torch.Generator().manual_seed(seed))
    model = task.model(seed)
    extra = (learn_stale,) if pools else ()
    training = HardenedTraining(
        task, harden, batches, s.base_steps, seed=seed, extra=extra, pools=pools, teacher=None
    )
    training.run(model, s.rate)
    return model.eval().requires_grad_(False)


class Story:
    """One seed: what is made, and what each part of it cost."""

    def __init__(self, data: str, seed: int, folder: Path, arguments: Any) -> None:
        self.task, self.seed = g2d.load_task("nsl-kdd", data, seed), seed
        table = {"task": {"name": "nsl-kdd", "data": data}, **self.task.settings}
        settings = build(Settings, table, "benchmark").override(population__seed=seed)
        self.defence = g2d.Defence.create(self.task, folder, settings)
        self.jury = Jury(self.task, held_out(data, seed), seed)
        self.found = record(arguments) | {
            "commit": commit(), "seed": seed, "rows": {}, "seconds": {}, "cpu": {},
        }  # fmt: skip

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """Do it; note wall time and CPU time, workers' included."""
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        made = work()
        self.found["seconds"][name] = round(time.perf_counter() - wall, 1)
        self.found["cpu"][name] = round(sum(os.times()[:4]) - cpu, 1)
        return made

    def tell(self) -> dict[str, Any]:
        """Everything, in the order in which a vault does it; the controls are made in between."""
        defence = self.defence
        self.timed("population", defence.populate)
        self.timed("fit", defence.fit)
        self.timed("rotations", self.rotate)
        controls = self.controls()
        self.timed("matrix", lambda: self.matrix(controls))
        return self.found

    def rotate(self) -> None:
        """Rotate; where no candidate passes its gates, ask again, as a service does, and note it.

        A chain ends early where that helps no more.
        """
        tried, given_up = [], 0
        for turn in range(ROTATIONS):
            for again in range(ASKED):
                seed = seed_of("rotation", self.seed, turn, again)
                try:
                    self.defence.generate(1, on_reject=tried.append, seed=seed)
                    break
                except GenerationError:
                    given_up += 1
            else:
                break
        made = len(self.defence.vault.exposures()) - 1
        self.found["candidates"] = {"accepted": made, "refused": len(tried), "given_up": given_up}

    def controls(self) -> dict[str, nn.Module]:
        """Train both controls, which are no part of what a vault does."""
        defence = self.defence
        harden = HardenSettings(recipe=("adversarial",), eps=self.task.eps / 2, checks=0,
                                guard="off")  # fmt: skip
        pools = [e.guide for e in defence.recent(defence.vault.exposures())]
        makers = {
            "hardened": lambda: retrained(defence, self.seed, harden),
            "retrained on attacks": lambda: retrained(
                defence, self.seed + 1000, HardenSettings(), pools
            ),
        }
        return {name: self.timed(name, make) for name, make in makers.items()}

    def matrix(self, controls: Mapping[str, nn.Module]) -> None:
        """Frozen, rotated, soups, and both retrainings."""
        defence, jury, rows = self.defence, self.jury, self.found["rows"]
        numbers = defence.vault.exposures()
        models = [load_model(self.task, defence.generation(n).state) for n in numbers]
        base, last = models[0], models[-EXPOSED:]
        rows["frozen"] = jury.single([base], jury.craft([base], "base"))
        rows["rotated"] = jury.chain(models)
        own = FittedMembers.of(defence)
        made = soups(own, EXPOSED + 5, self.seed)
        rows["soup"] = jury.chain([load_model(self.task, state) for state in made])
        known = jury.craft(last, "joint", "live")
        for name, model in controls.items():
            rows[name] = jury.single([model], known)
            rows[name]["white_box"] = jury.asr(model, jury.craft([model], name))
        rows["rotated"]["white_box"] = jury.asr(models[-1], jury.craft([models[-1]], "own"))
        normal = {n: share(int((s.y == 0).sum()), len(s)).value for n, s in jury.sets.items()}
        self.found["normal_share"] = normal


def main() -> None:
    """Run one seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data/nslkdd")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        story = Story(
            arguments.data, arguments.seed, Path(folder) / "vault", replace_path(arguments)
        )
        found = story.tell()
    save(RESULTS / f"nslkdd-seed{arguments.seed}.json", found)


def replace_path(arguments: argparse.Namespace) -> argparse.Namespace:
    """The data folder by its name alone: where it lies on this machine is nobody's business."""
    return argparse.Namespace(data=Path(arguments.data).name, seed=arguments.seed)


if __name__ == "__main__":
    main()
