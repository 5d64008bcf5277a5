"""What other settings of `nsl-kdd` give, on the gate split, where the task's own were chosen.

    python -m benchmarks.tabular.trials --data ../shared/data/nslkdd

Neither held-out nor official flows are looked at. Trials that are in
benchmarks/results/nslkdd-trials.json are not run again, so a run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import g2d
from benchmarks.common.places import RESULTS
from benchmarks.common.results import commit, hardware, save
from g2d.attacks import pgd
from g2d.core.seeds import seed_of
from g2d.core.types import Logits
from g2d.errors import GenerationError
from g2d.redteam.scoring import attack_rate
from g2d.settings import Settings, build
from g2d.tasks.inference import load_model, predict
from g2d.tasks.nslkdd import detection_rate
from g2d.tasks.task import Task
from g2d.weights.checkpoints import unpack

PATH = RESULTS / "nslkdd-trials.json"
ROTATIONS, FLOWS, STEPS, EXPOSED, FIRST = 8, 500, 20, 10, 4

# The first settings of the task, with fewer members: every trial says what it changes in them.
BEFORE = {
    "population__members": 12, "population__basins": 3, "population__base_steps": 3000,
    "population__early_steps": 600, "population__fork_steps": 400, "population__light_eps": 0.5,
    "autoencoder__steps": 600, "diffusion__steps": 1500,
    "guidance__mu": 2.0, "guidance__polish_steps": 150,
    "gates__accuracy_drop": 0.01, "gates__class_drop": 0.02, "gates__stale_asr": 0.3,
    "gates__attempts": 8,
}  # fmt: skip
OPEN = {"gates__accuracy_drop": 0.1, "gates__class_drop": 0.2, "gates__stale_asr": 0.9}
TIGHT = {"gates__accuracy_drop": 0.0075, "gates__class_drop": 0.015}
LONG = {
    "population__early_steps": 2000, "population__fork_steps": 1000, "population__light_eps": 0.0,
    "autoencoder__steps": 300, "diffusion__steps": 800,
    "guidance__mu": 1.0, "guidance__polish_steps": 300,
}  # fmt: skip
TRIALS: Mapping[str, Mapping[str, Any]] = {
    "as before, of 12 members in 3 basins": {},
    "without light FGSM, early 2,000, forks 1,000, mu 1, polish 300, gates wide open":
        LONG | OPEN,
    "the same, accuracy gate 0.75 %": LONG | TIGHT,
    "the same, mu 2": LONG | TIGHT | {"guidance__mu": 2.0},
    "**the same, mu 0.5**": LONG | TIGHT | {"guidance__mu": 0.5},
}  # fmt: skip


@dataclass
class Bench:
    """One seed's task, and populations that several trials share."""

    task: Task
    data: str
    seed: int
    folder: Path

    def settings(self, changes: Mapping[str, Any]) -> Settings:
        """The task's settings, with the ones of before and a trial's over them."""
        table = {"task": {"name": "nsl-kdd", "data": self.data}, **self.task.settings}
        first = build(Settings, table, "trial").override(population__seed=self.seed)
        return first.override(**{**BEFORE, **changes})

    def fitted(self, settings: Settings, name: str) -> g2d.Defence:
        """A vault with population and generator of these settings; a copy, if it was made."""
        parts = (settings.population, settings.autoencoder, settings.diffusion)
        kept = self.folder / f"{seed_of(*map(repr, parts))}"
        if not kept.exists():
            g2d.Defence.build(self.task, kept, settings).close()
        path = self.folder / name
        shutil.copytree(kept, path)
        return g2d.Defence.create(self.task, path, settings)

    def run(self, changes: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Rotate, as far as the gates let it, and measure on the gate split."""
        settings, refused, gave_up = self.settings(changes), [], 0
        with self.fitted(settings, name) as defence:
            for turn in range(ROTATIONS):
                try:
                    defence.generate(1, on_reject=refused.append, seed=self.seed + 1000 * turn)
                except GenerationError:
                    gave_up += 1
                    break
            members = defence.vault.entries("member")
            rivals = [load_model(self.task, unpack(defence.vault.read(e))) for e in members]
            chain = [
                load_model(self.task, defence.generation(n).state)
                for n in defence.vault.exposures()
            ]
            spent = [entry.info["cpu_seconds"] for entry in members]
        found = {
            "base": self.detection(chain[0]), "members": [self.detection(m) for m in rivals],
            "member_cpu_seconds": spent, "accepted": len(chain) - 1, "refused": len(refused),
            "gave_up": bool(gave_up), "generations": [self.detection(m) for m in chain[1:]],
        }  # fmt: skip
        return found | self.attacked(chain)

    def detection(self, model: Logits) -> float:
        """Detection at 1 % false alarms on the gate split."""
        gate = self.task.splits.gate
        return detection_rate(predict(model, gate.x), gate.y)

    def attacked(self, chain: Sequence[Logits]) -> dict[str, Any]:
        """Joint stale ASR of the later generations, the base's own, and the last one's own."""
        stale = [
            self.asr(chain[t], chain[max(0, t - EXPOSED) : t]) for t in range(FIRST, len(chain))
        ]
        return {
            "asr_stale": sum(stale) / len(stale) if stale else None,
            "asr_frozen": self.asr(chain[0], chain[:1]),
            "asr_white": self.asr(chain[-1], chain[-1:]) if stale else None,
        }

    def asr(self, model: Logits, known: Sequence[Logits]) -> float:
        """ASR of one attack on all known networks."""
        gate = self.task.splits.gate
        split = gate.sample(FLOWS, torch.Generator().manual_seed(self.seed))
        made: Tensor = pgd(
            known, split.x, split.y, eps=self.task.eps, steps=STEPS, bounds=self.task.reach,
            step_size=self.task.eps / 8, generator=torch.Generator().manual_seed(self.seed),
        )  # fmt: skip
        return attack_rate(model, made, split, self.task.eps, self.task.reach).value


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data/nslkdd")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    record: dict[str, Any] = {"seed": arguments.seed, "split": "gate", "trials": {}}
    if PATH.exists():
        record = json.loads(PATH.read_text())
    with tempfile.TemporaryDirectory() as folder:
        task = g2d.load_task("nsl-kdd", arguments.data, arguments.seed)
        bench = Bench(task, arguments.data, arguments.seed, Path(folder))
        for number, (name, changes) in enumerate(TRIALS.items()):
            if name in record["trials"]:
                continue
            made = bench.run(changes, f"trial-{number}")
            measured = {"commit": commit(), "hardware": hardware()}
            record["trials"][name] = {"changes": dict(changes)} | made | {"measured": measured}
            save(PATH, record)
            print(f"{name}: {made['accepted']} accepted, stale {made['asr_stale']}", flush=True)


if __name__ == "__main__":
    main()
