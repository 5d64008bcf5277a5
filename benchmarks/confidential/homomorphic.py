"""What an encrypted answer costs, and how near it is to torch's: CPU seconds, bytes, errors.

    python -m benchmarks.confidential.homomorphic --data ../shared/data/mnist

Trains one network of `mnist-he` by plain Adam, encodes it, and asks it `--images` times under
encryption, by the library and without the service. CPU seconds are of one thread, keys once and
medians of the rest; the logits that errors are of are exact, answers as clients see them are
rounded. 1,000 images take ten CPU minutes. `--task digits` with `--images 20` takes half a minute.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from benchmarks.common.command import carry_out, parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import record
from benchmarks.confidential.pages import block
from g2d import load_task
from g2d.protect.homomorphic import (
    EvaluationKeys,
    Plan,
    SecretKeys,
    encode,
    evaluate,
    pre_activations,
)
from g2d.tasks.task import Task

Made = TypeVar("Made")
NAME = "confidential-homomorphic"
_ENCODINGS = 5


class Clock:
    """CPU seconds of named calls."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {}

    def time(self, name: str, call: Callable[[], Made]) -> Made:
        """Call, and note what it took."""
        began = time.process_time()
        made = call()
        self.took.setdefault(name, []).append(time.process_time() - began)
        return made

    def medians(self) -> dict[str, float]:
        """One number for each name."""
        return {name: round(statistics.median(took), 4) for name, took in self.took.items()}


def task_of(given: argparse.Namespace) -> Task:
    """The task that was asked for; digits are embedded, and read no folder."""
    return load_task(f"{given.task}-he", given.data if given.task == "mnist" else "")


def trained(task: Task, steps: int, seed: int) -> nn.Module:
    """A network after `steps` batches of 128, and a learning rate that rises and falls."""
    torch.manual_seed(seed)
    network, data = task.model(seed), task.splits.train
    optimiser = torch.optim.Adam(network.parameters(), 4e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(data.x), (128,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(data.x[chosen]), data.y[chosen]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
    return network.eval()


def measure(given: argparse.Namespace, _: Path) -> dict[str, Any]:
    """One network, one client, one question after the other."""
    task, clock = task_of(given), Clock()
    network = trained(task, given.steps, given.seed)
    images = task.splits.test.x[: given.images]
    plan = clock.time("plan", lambda: Plan.of(network, tuple(images.shape[1:])))
    for _ in range(_ENCODINGS):
        encoded = clock.time("encode", lambda: encode(plan, network.state_dict()))
    keys = SecretKeys.new(plan)
    upload = clock.time("upload", keys.upload)
    server = clock.time("read keys", lambda: EvaluationKeys.read(upload, plan))
    with torch.no_grad():
        wanted = network.double()(images.double())
    errors, rounded, same = [], [], 0
    for image, logits in zip(images, wanted, strict=True):
        query = clock.time("encrypt", lambda image=image: keys.encrypt(image[None]))
        answer = clock.time("evaluate", lambda q=query: evaluate(plan, encoded, server, q))
        told = clock.time("decrypt", lambda a=answer: keys.decrypt(a))[0]
        errors.append(float((keys.decrypt(answer, exact=True)[0] - logits).abs().max()))
        rounded.append(float((told - logits).abs().max()))
        same += int(told.argmax() == logits.argmax())
    test = task.splits.test
    right = (network(test.x.double()).argmax(1) == test.y).float().mean()
    return record(given) | {
        "cpu_seconds": clock.medians(),
        "agreement": {"same": same, "of": len(images)},
        "error": {"exact": max(errors), "rounded": max(rounded)},
        "accuracy": float(right),
        "largest": {"logit": float(wanted.abs().max()), "bound": plan.bound,
                    "pre_activations": pre_activations(network, images.double())},
        "plan": {"degree": plan.parameters.degree, "bits": plan.parameters.bits,
                 "parameters": sum(one.numel() for one in network.parameters())},
        "bytes": {"upload": len(upload), "query": plan.limits.query_bytes,
                  "answer": plan.limits.answer_bytes, "encoded": encoded.nbytes},
    }  # fmt: skip


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table."""
    took, size, same = result["cpu_seconds"], result["bytes"], result["agreement"]
    plan, error = result["plan"], result["error"]
    client = took["encrypt"] + took["decrypt"]
    return [
        ("one image, CPU s", "≤ 1.5", f"{took['evaluate']:.2f}"),
        ("the client's part of it, CPU s", "", f"{client:.2f}"),
        ("argmax as torch's", "≥ 999 of 1,000", f"{same['same']:,} of {same['of']:,}"),
        ("largest error of a logit", "< 1e-3", f"{error['exact']:.1e}"),
        ("the same, rounded as clients see it", "", f"{error['rounded']:.1e}"),
        ("a new generation encoded, CPU s", "≤ 2", f"{took['encode']:.2f}"),
        ("a client's upload, once, MB", "≤ 150", f"{size['upload'] / 1e6:.0f}"),
        ("a query and its answer, MB", "", f"{(size['query'] + size['answer']) / 1e6:.1f}"),
        ("N and bits of all primes", "128-bit security", f"{plan['degree']:,}, {plan['bits']}"),
    ]


def made(folder: Path = RESULTS) -> dict[str, str]:
    """The table by the name of its mark, for `benchmarks.tables`."""
    return block(NAME, rows, folder=folder)


def main() -> None:
    """Measure and keep."""
    flags = parser(__doc__)
    flags.add_argument("--task", default="mnist", choices=["mnist", "digits"])
    flags.add_argument("--data", default="../shared/data/mnist", help="folder of MNIST")
    flags.add_argument("--images", type=int, default=1000)
    flags.add_argument("--steps", type=int, default=1500, help="batches of training")
    flags.add_argument("--seed", type=int, default=0)
    carry_out(NAME, flags, measure, rows)


if __name__ == "__main__":
    main()
