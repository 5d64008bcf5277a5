"""Does trigger inversion tell networks with a backdoor from those without one?

    python -m benchmarks.federated.scan --task digits --count 10
    python -m benchmarks.federated.scan --count 1 --base-steps 20 --steps 5    # a try

Networks of the same recipe from many seeds: clean ones, and ones of whose records a share has the
red team's trigger. Of each the size of the smallest pattern that is found by the median's (flagged
below 0.6), Neural Cleanse's own anomaly index (flagged above 2), and whether the class that is
named is the trigger's. What decides whether a scan may be a gate is how many clean networks it
would refuse.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.command import Result, parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import record, save
from benchmarks.common.tables import markdown
from benchmarks.federated.aggregation import worth
from g2d.attacks.byzantine import TARGET
from g2d.attacks.poisoning import poisoned_task
from g2d.core.seeds import seed_of
from g2d.defence.backdoors import scan
from g2d.settings import Settings
from g2d.tasks.inference import load_model
from g2d.tasks.source import by_name, resolve
from g2d.tasks.task import Task
from g2d.training.loop import Batches, clean_step, train

BELOW, ABOVE = 0.6, 2.0  # ours, chosen on seed 0; the paper's


def measured(task: Task, given: Namespace, share: float, index: int) -> Result:
    """One network: what the trigger does to it, and what the scan says."""
    seed = seed_of(given.seed, "scan", share, index)
    source = torch.Generator().manual_seed(seed)
    own = poisoned_task(task, share, TARGET, source) if share else task
    model = own.model(seed)
    batches = Batches(own, own.splits.train, 64, source)
    train(model, clean_step(own, batches), steps=given.base_steps, rate=2e-3)
    state = model.state_dict()
    found = scan(load_model(task, state), task.splits.gate, task.classes, task.bounds,
                 steps=given.steps)  # fmt: skip
    sizes = [one.size for one in found.triggers]
    told = {
        "ratio": found.ratio,
        "index": found.index,
        "named": found.target == TARGET,
        "sizes": sizes,
    }
    return worth(task, state, True) | told


def auc(clean: Sequence[float], bad: Sequence[float]) -> float:
    """The chance that a network with a backdoor stands out more than one without."""
    pairs = [(b > c) + 0.5 * (b == c) for b in bad for c in clean]
    return sum(pairs) / max(1, len(pairs))


def table(rows: dict[str, list[Result]]) -> str:
    """By share of poisoned records: what the trigger does, and how the scan tells them."""
    lines, clean = [], [-row["ratio"] for row in rows["0"]]
    for share, each in rows.items():
        ratios = sorted(row["ratio"] for row in each)
        small = [row for row in each if row["ratio"] < BELOW]
        lines.append([
            share, f"{min(r['asr'] for r in each):.2f} to {max(r['asr'] for r in each):.2f}",
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}", f"{len(small)} of {len(each)}",
            f"{sum(row['named'] for row in small)} of {len(each)}",
            f"{sum(row['index'] > ABOVE for row in each)} of {len(each)}",
            "–" if share == "0" else f"{auc(clean, [-ratio for ratio in ratios]):.2f}",
        ])  # fmt: skip
    head = ["poisoned", "trigger success", "smallest by median", "flagged", "class named",
            "by the paper's index", "AUC to clean"]  # fmt: skip
    return markdown(head, lines)


def flags() -> ArgumentParser:
    """What may be asked for."""
    found = parser(__doc__)
    found.add_argument("--task", default="digits")
    found.add_argument("--data", type=Path)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--shares", type=float, nargs="+", default=[0, 0.05, 0.3])
    found.add_argument("--count", type=int, default=10, help="networks of each share")
    found.add_argument("--base-steps", type=int, default=600)
    found.add_argument("--steps", type=int, default=150, help="of a scan, for each class")
    found.add_argument("--out", type=Path, help="default: benchmarks/results/federated-scan.json")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = flags().parse_args(arguments)
    torch.set_num_threads(1)
    changes = {"task__name": given.task, "task__data": str(given.data or "")}
    task = resolve(by_name(Settings().override(**changes).task))
    rows = {
        f"{share:g}": [measured(task, given, share, k) for k in range(given.count)]
        for share in given.shares
    }
    save(given.out or RESULTS / "federated-scan.json", record(given) | {"rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
