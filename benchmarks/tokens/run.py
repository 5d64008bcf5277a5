"""A spam filter under two replaced words: population, rotations, and what stale attacks still do.

    python -m benchmarks.tokens --seed 0

Writes benchmarks/results/tokens-seed<seed>.json. Attacks are substitutions of two words out of the
whole vocabulary, proposed by G2D and scored by its own code on test messages; the one that replaces
words is told everything about exposed networks and nothing about the live one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from benchmarks.common.places import RESULTS
from benchmarks.common.results import commit, record, save
from benchmarks.tokens.task import task as spam
from g2d import Defence, Task
from g2d.attacks.crafting import craft, label_of
from g2d.core.engine import SerialEngine
from g2d.redteam.controls import FittedMembers, retrained, soups
from g2d.redteam.scoring import Rate, accuracy_rate, attack_rate, pooled
from g2d.tasks.inference import load_model
from g2d.tasks.splits import Split

JOINT, LAST, RETRAINED = 5, 4, 3


class Bench:
    """One task's test messages, and attacks on them; spam alone is told apart."""

    def __init__(self, task: Task, messages: int, seed: int) -> None:
        self.task = task
        self.split = task.splits.test.sample(messages, torch.Generator().manual_seed(seed))
        self.spam = self.split.y == 1

    def craft(self, models: Sequence[nn.Module], how: str) -> torch.Tensor:
        source = torch.Generator().manual_seed(0)
        return craft(self.task, models, self.split.x, self.split.y, generator=source, how=how)

    def score(self, model: nn.Module, proposed: torch.Tensor) -> tuple[Rate, Rate]:
        """ASR on all messages, and on spam alone: spam that passes as ham."""
        own = Split(self.split.x[self.spam], self.split.y[self.spam])
        rates = [
            attack_rate(model, x, split, self.task.eps, None, self.task)
            for x, split in ((proposed, self.split), (proposed[self.spam], own))
        ]
        return rates[0], rates[1]

    def row(
        self, attacker: str, model: str, pairs: Sequence[tuple[Sequence[nn.Module], nn.Module]],
        how: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Each pair is (networks that the attacker has read, the network that is attacked)."""
        began = time.process_time()
        found = [self.score(target, self.craft(known, how)) for known, target in pairs]
        every, spam_alone = ([one[place] for one in found] for place in (0, 1))
        return {
            "attacker": attacker, "model": model, "attack": label_of(self.task, 0, how),
            "asr": vars(pooled(every)), "worst": max(rate.value for rate in every),
            "spam_asr": vars(pooled(spam_alone)),
            "clean": pooled([accuracy_rate(m, self.task.splits.test) for _, m in pairs]).value,
            "networks": len(pairs), "cpu_seconds": round(time.process_time() - began, 1),
        }  # fmt: skip


def measure(bench: Bench, defence: Defence) -> list[dict[str, Any]]:
    """Every row of one seed."""
    numbers = defence.vault.exposures()
    chain = [defence.generation(k).model() for k in numbers]
    base, live = chain[0], chain[-1]
    made = [retrained(bench.task, defence.settings, seed) for seed in range(RETRAINED)]
    fresh, cheap = (
        [model for model, _ in made],
        [
            load_model(bench.task, s)
            for s in soups(FittedMembers.of(defence), JOINT + LAST, 0)
        ],
    )  # fmt: skip
    latest = range(len(chain) - LAST, len(chain))
    before = [([chain[k - 1]], chain[k]) for k in latest]
    joint = [(chain[max(0, k - JOINT) : k], chain[k]) for k in latest]
    stayed = [([live], live)]
    soup = [(cheap[k : k + JOINT], cheap[k + JOINT]) for k in range(LAST)]
    one, many = "has read the last one", f"has read the last {JOINT}"
    rows = [
        bench.row(one, "frozen", [([base], base)], "beam"),
        bench.row(one, "unrotated", stayed, "beam"),
        bench.row(one, "rotated", before, "beam"),
        bench.row(one, "retrained", [([a], b) for a, b in itertools.pairwise(fresh)], "beam"),
        bench.row(one, "soup", [(known[-1:], target) for known, target in soup], "beam"),
        bench.row(many, "rotated", joint, "greedy"),
        bench.row(many, "soup", soup, "greedy"),
    ]
    for row in rows:
        row["retraining_cpu_seconds"] = sum(cost for _, cost in made) / len(made)
    return rows


def run(seed: int, rotations: int, messages: int, vault: Path) -> dict[str, Any]:
    """Population, generator, rotations and rows of one seed."""
    task, seconds = spam(seed), {}
    with Defence.create(task, vault) as defence, SerialEngine() as engine:
        for name, work in (
            ("population", lambda: defence.populate(engine)),
            ("generator", defence.fit),
            ("rotations", lambda: defence.generate(rotations, seed=seed)),
        ):
            began = time.process_time()
            work()
            seconds[name] = round(time.process_time() - began, 1)
            print(f"seed {seed}: {name} took {seconds[name]:.0f} CPU s", flush=True)
        rows = measure(Bench(task, messages, seed), defence)
        distances = [g.manifest["figures"].get("distance") for g in defence.vault.generations()[1:]]
        return {
            "parameters": sum(p.numel() for p in task.model(0).parameters()),
            "vocabulary": task.tokens.vocabulary if task.tokens else 0,
            "members": len(defence.vault.entries("member")), "rotations": rotations,
            "rejected": len(defence.vault.rejections()), "seconds": seconds,
            "distance": distances, "budget": task.attack_words, "rows": rows,
            "settings": defence.settings.to_toml(),
        }  # fmt: skip


def main() -> None:
    """Measure one seed and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rotations", type=int, default=9)
    parser.add_argument("--messages", type=int, default=200, help="test messages that are attacked")
    parser.add_argument("--out", type=Path, help="another file for the results")
    given = parser.parse_args()
    facts = record(given) | {"commit": commit()}
    with TemporaryDirectory() as folder:
        found = run(given.seed, given.rotations, given.messages, Path(folder) / "vault")
    save(given.out or RESULTS / f"tokens-seed{given.seed}.json", facts | found)


if __name__ == "__main__":
    main()
