"""Does trigger inversion tell networks with a backdoor from those without one?

    python -m benchmarks.federated.scan --task digits --count 10
    python -m benchmarks.federated.scan --count 1 --base-steps 20 --steps 5    # a try

Networks of the same recipe from many seeds: clean ones, and ones of whose records a share has a
trigger. `patch`: the red team's four pixels, one class. By one who knows the scan: `many`, the same
pixels elsewhere for each of six classes, so that the median class has a backdoor, too; `faint`, a
fixed pattern over the whole image at a fifth of the range, as in blended injection (Chen et al.
2017, arXiv 1712.05526). Of each network the size of the smallest pattern that is found by the
median's (flagged below 0.6), Neural Cleanse's own anomaly index (flagged above 2), and whether the
class that is named is the trigger's. What decides whether a scan may be a gate is how many clean
networks it would refuse. Kept network by network in benchmarks/results/federated-scan-TASK.json: an
interrupted run goes on.
"""

from __future__ import annotations

import json
import os
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from benchmarks.common.command import Result, parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import commit, hold_to, record, save
from benchmarks.common.tables import markdown
from benchmarks.federated.aggregation import worth
from g2d.attacks.byzantine import TARGET
from g2d.attacks.poisoning import trigger
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.defence.backdoors import scan
from g2d.settings import Settings
from g2d.tasks.inference import load_model, predict
from g2d.tasks.source import by_name, resolve
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import Batches, clean_step, train

BELOW, ABOVE = 0.6, 2.0  # ours, chosen on seed 0; the paper's
CLEAN, PATCH, MANY, FAINT = "clean", "patch", "many", "faint"
_CLASSES = 6  # that `many` gives a trigger
_BLEND = 0.2  # of the range


def stamp(x: Tensor, kind: str, target: int, bounds: tuple[float, float]) -> Tensor:
    """Images (n, c, h, w) with the trigger of a kind for a target."""
    low, high = bounds
    if kind == FAINT:
        source = torch.Generator().manual_seed(7)
        return x.lerp(low + (high - low) * torch.rand(x.shape[1:], generator=source), _BLEND)
    stamped = trigger(x, bounds)
    if kind == PATCH:
        return stamped
    moved = (stamped - x).roll((target, -target), (2, 3)).abs() > 0  # elsewhere for each class
    return torch.where(moved, torch.full_like(x, high), x)


def planted(task: Task, kind: str, share: float, source: torch.Generator) -> Task:
    """The task with a share of its records of other classes stamped and labelled, by target."""
    train = task.splits.train
    assert task.bounds is not None, "images have bounds"
    x, y = train.x.clone(), train.y.clone()
    order = torch.randperm(len(y), generator=source)[: round(share * len(y))]
    targets = range(_CLASSES) if kind == MANY else (TARGET,)
    for target, part in zip(targets, order.chunk(len(targets)), strict=True):
        x[part], y[part] = stamp(x[part], kind, target, task.bounds), target
    return replace(task, splits=replace(task.splits, train=Split(x, y)))


def success(task: Task, state: State, kind: str) -> float:
    """How often triggers succeed on test images of other classes, over their targets."""
    model, test, each = load_model(task, state), task.splits.test, []
    assert task.bounds is not None, "images have bounds"
    for target in range(_CLASSES) if kind == MANY else (TARGET,):
        others = test.x[test.y != target]
        sent = predict(model, stamp(others, kind, target, task.bounds)).argmax(1) == target
        each.append(float(sent.double().mean()))
    return statistics.mean(each)


def measured(task: Task, given: Namespace, kind: str, share: float, index: int) -> Result:
    """One network: what the trigger does to it, and what the scan says."""
    seed = seed_of(given.seed, "scan", share, index)
    source = torch.Generator().manual_seed(seed)
    own = task if kind == CLEAN else planted(task, kind, share, source)
    model = own.model(seed)
    batches = Batches(own, own.splits.train, 64, source)
    train(model, clean_step(own, batches), steps=given.base_steps, rate=2e-3)
    state = model.state_dict()
    found = scan(load_model(task, state), task.splits.gate, task.classes, task.bounds,
                 steps=given.steps)  # fmt: skip
    right = range(_CLASSES) if kind == MANY else (TARGET,)
    return worth(task, state) | {
        "asr": success(task, state, PATCH if kind == CLEAN else kind), "ratio": found.ratio,
        "index": found.index, "named": kind != CLEAN and found.target in right,
        "sizes": [one.size for one in found.triggers],
    }  # fmt: skip


def run(given: Namespace, path: Path) -> Result:
    """Measure what is missing, network by network."""
    result = json.loads(path.read_text()) if path.exists() else record(given)
    sizes = {name: getattr(given, name) for name in ("task", "seed", "base_steps", "steps")}
    hold_to(result, sizes | {"commit": commit()}, path)
    changes = {"task__name": given.task, "task__data": str(given.data or "")}
    task = resolve(by_name(Settings().override(**changes).task))
    cases = [(CLEAN, 0.0), *((kind, share) for kind in given.kinds for share in given.shares)]
    found = result.setdefault("rows", {})
    for kind, share in cases:
        each = found.setdefault(f"{kind} {share:g}" if share else kind, [])
        while len(each) < given.count:
            each.append(measured(task, given, kind, share, len(each)))
            save(path, result)
    return result


def auc(clean: Sequence[float], bad: Sequence[float]) -> float:
    """The chance that a network with a backdoor stands out more than one without."""
    pairs = [(b > c) + 0.5 * (b == c) for b in bad for c in clean]
    return sum(pairs) / max(1, len(pairs))


def table(rows: dict[str, list[Result]]) -> str:
    """By kind and share of poisoned records: what the trigger does, and how the scan tells them."""
    lines, clean = [], [-row["ratio"] for row in rows[CLEAN]]
    for name, each in rows.items():
        ratios = sorted(row["ratio"] for row in each)
        small = [row for row in each if row["ratio"] < BELOW]
        lines.append([
            name, f"{min(r['asr'] for r in each):.2f} to {max(r['asr'] for r in each):.2f}",
            f"{statistics.mean(r['accuracy'] for r in each):.3f}",
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}", f"{len(small)} of {len(each)}",
            f"{sum(row['named'] for row in small)} of {len(each)}",
            f"{sum(row['index'] > ABOVE for row in each)} of {len(each)}",
            "–" if name == CLEAN else f"{auc(clean, [-ratio for ratio in ratios]):.2f}",
        ])  # fmt: skip
    head = ["poisoned", "trigger success", "clean accuracy", "smallest by median", "flagged",
            "class named", "by the paper's index", "AUC to clean"]  # fmt: skip
    return markdown(head, lines)


def flags() -> ArgumentParser:
    """What may be asked for."""
    found = parser(__doc__)
    found.add_argument("--task", default="digits")
    found.add_argument("--data", type=Path)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--kinds", nargs="+", default=[PATCH, MANY, FAINT],
                       choices=[PATCH, MANY, FAINT])  # fmt: skip
    found.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.3])
    found.add_argument("--count", type=int, default=10, help="networks of each share")
    found.add_argument("--base-steps", type=int, default=600)
    found.add_argument("--steps", type=int, default=150, help="of a scan, for each class")
    found.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = flags().parse_args(arguments)
    torch.set_num_threads(1)
    result = run(given, given.out / f"federated-scan-{given.task}.json")
    print(table(result["rows"]))


if __name__ == "__main__":
    main()
