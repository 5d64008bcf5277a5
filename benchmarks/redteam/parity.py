"""Do our attacks agree with the established ones, and what do they cost?

    python -m benchmarks.redteam.parity --vault runs/mnist-0 --vault runs/mnist-1

On the base and the live generation of every vault, test split: our PGD against ART's
`ProjectedGradientDescentPyTorch` (same network, eps, steps, step size, one random start, batches of
500; seeds differ, so inputs near the decision boundary may too), interleaved in one process; and
AutoAttack through `g2d.attacks.autoattack` and the judge against a direct call, image by image.
Times are CPU seconds of one core. `floor` is the time of the gradients alone: forward and backward
passes of the same number of batches, with nothing around them.

Writes benchmarks/results/attack_parity.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common.places import RESULTS
from benchmarks.common.results import hardware, save
from g2d.attacks import autoattack, pgd, project
from g2d.attacks.art import quiet, white_box
from g2d.defence.defence import Defence
from g2d.redteam.scoring import attack_rate
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

STEPS = 20
BATCH = 500
REPEATS = 3


def ours(task: Task, model: nn.Module, split: Split, seed: int, batch: int) -> Tensor:
    """Our PGD."""
    return pgd(
        model, split.x, split.y, eps=task.eps, steps=STEPS, bounds=task.bounds, batch=batch,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def theirs(task: Task, model: nn.Module, split: Split, seed: int, batch: int) -> Tensor:
    """ART's PGD with the same budget."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    estimator = white_box(model, tuple(split.x.shape[1:]), task.classes, task.bounds)
    attack = ProjectedGradientDescentPyTorch(
        estimator, norm="inf", eps=task.eps, eps_step=2.5 * task.eps / STEPS, max_iter=STEPS,
        num_random_init=1, batch_size=batch, verbose=False,
    )  # fmt: skip
    with quiet(seed):
        return torch.from_numpy(attack.generate(split.x.numpy(), split.y.numpy()))


def floor(task: Task, model: nn.Module, split: Split, seed: int, batch: int) -> Tensor:
    """The gradients that PGD needs, and nothing else."""
    for x, y in zip(split.x.split(batch), split.y.split(batch), strict=True):
        point = x.clone().requires_grad_()
        for _ in range(STEPS):
            torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
    return split.x


def timed(function: Callable[..., Tensor], *arguments: Any) -> tuple[Tensor, float]:
    """What a function returns, and its CPU seconds."""
    began = time.process_time()
    found = function(*arguments)
    return found, time.process_time() - began


def pgd_parity(task: Task, model: nn.Module, split: Split) -> dict[str, Any]:
    """ASR and CPU seconds of both, interleaved; means over seeds, times the median."""
    ways = {"ours": ours, "art": theirs, "floor": floor}
    asr: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(REPEATS):
        for name, way in ways.items():
            found, cost = timed(way, task, model, split, seed, BATCH)
            rate = attack_rate(model, found, split, task.eps, task.bounds)
            asr[name].append(rate.value)
            seconds[name].append(cost)
    _, small = timed(theirs, task, model, split, 0, 32)
    cost = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "asr_ours": statistics.mean(asr["ours"]),
        "asr_art": statistics.mean(asr["art"]),
        "asr_each": {"ours": asr["ours"], "art": asr["art"]},
        "points_apart": 100 * abs(statistics.mean(asr["ours"]) - statistics.mean(asr["art"])),
        "cpu_seconds": cost | {"art, its default batch of 32": small},
        "art_over_ours": cost["art"] / cost["ours"],
        "ours_over_floor": cost["ours"] / cost["floor"],
    }


def autoattack_parity(task: Task, model: nn.Module, split: Split, seed: int) -> dict[str, Any]:
    """Robust or not, image by image: through our room and judge, and by a direct call."""
    from pyautoattack import AutoAttack

    found, our_cost = timed(
        lambda: autoattack(
            model, split.x, split.y, eps=task.eps, seed=seed, bounds=task.bounds, batch=250
        )
    )
    inside = project(found, split.x, task.eps, task.bounds)
    robust = predict(model, inside).argmax(1) == split.y
    began = time.process_time()
    with torch.random.fork_rng(devices=[]):
        attack = AutoAttack(model, eps=task.eps, seed=seed, version="standard")
        expected, labels = attack.run_standard_evaluation(split.x, split.y, batch_size=250)
    rate = attack_rate(model, found, split, task.eps, task.bounds)
    return {
        "n": len(split),
        "robust_accuracy_ours": float(robust.double().mean()),
        "robust_accuracy_direct": float((labels == split.y).double().mean()),
        "images_that_differ": int((robust != (labels == split.y)).sum()),
        "same_bytes": torch.equal(found, expected),
        "asr": rate.value,
        "cpu_seconds": {"ours": our_cost, "direct": time.process_time() - began},
    }


def main() -> None:
    """Compare on every vault's base and live generation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vault", action="append", required=True, help="may be repeated")
    parser.add_argument("--n", type=int, default=1000, help="test images for PGD")
    parser.add_argument("--n-autoattack", type=int, default=100, help="test images for AutoAttack")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for vault in options.vault:
        defence = Defence.open(vault, write=False)
        task, exposed = defence.task, defence.vault.exposures()
        test = task.splits.test.sample(options.n, torch.Generator().manual_seed(0))
        few = test.take(range(min(options.n_autoattack, len(test))))
        for name, number in (("base", exposed[0]), ("live", exposed[-1])):
            model = defence.generation(number).model()
            row = {"vault": Path(vault).name, "network": name, "generation": number}
            row |= {"pgd": pgd_parity(task, model, test)}
            row |= {"autoattack": autoattack_parity(task, model, few, seed=0)}
            rows.append(row)
            print(row, flush=True)
            settings = {"steps": STEPS, "batch": BATCH, "repeats": REPEATS, "n": options.n}
            save(
                options.out / "attack_parity.json",
                {"hardware": hardware(), "settings": settings, "rows": rows},
            )


if __name__ == "__main__":
    main()
