"""CPU time of Keras models here, beside the same networks written in PyTorch, in one run.

    python -m benchmarks.interop.keras                    # some minutes of one core
    python -m benchmarks.interop.keras --steps 2 --turns 2 --batch 16     # a try

A step is a forward and a backward pass in training mode, without an optimiser, which costs all
alike; an answer is a forward pass in evaluation mode. Turns alternate; of each turn's ratio to
torch's time the mean and its 95 % interval are told. Inputs are noise, channels last in Keras and
channels first in torch. "Run by Keras, each layer" is the adapter whose common layers are left to
Keras, too. Writes benchmarks/results/interop-keras.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.interop import tables
from benchmarks.interop.networks import IMAGE, PAIRS, Pair
from g2d.interop import keras as worlds
from g2d.interop.keras.tasks import factory_of
from g2d.tasks.splits import split_dataset

Work = Callable[[], None]


def measure(given: argparse.Namespace, _: Path) -> command.Result:
    """CPU milliseconds of a step and of an answer, by network, way and turn."""
    result = record(given)
    times: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, pair in PAIRS.items():
        models = _models(pair, given.seed)
        times[name] = {way: {"step": [], "answer": []} for way in models}
        generator = torch.Generator().manual_seed(given.seed)
        x = torch.rand(given.batch, *IMAGE, generator=generator)
        y = torch.randint(10, (given.batch,), generator=generator)
        for turn in range(given.turns + 1):
            for way, model in models.items():
                own = x.movedim(-1, 1).contiguous() if way == "torch" else x
                for what, work in _works(model, own, y).items():
                    spent = _spent(work, given.steps)
                    if turn:  # the first one warms caches up
                        times[name][way][what].append(spent)
    return result | {"milliseconds": times}


def _models(pair: Pair, seed: int) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    models = {"torch": pair.torch()}
    splits = split_dataset(torch.rand(400, *IMAGE), torch.arange(400) % 10)
    if pair.translated:
        models["translated"] = worlds.task(pair.keras, splits, native=True).model(seed)
    task = worlds.task(pair.keras, splits, native=False)
    models["adapter"] = task.model(seed)
    models["each layer"] = replace(factory_of(task), direct=False)()
    sizes = {sum(p.numel() for p in model.parameters()) for model in models.values()}
    assert len(sizes) == 1, f"the networks differ: {sizes}"
    return models


def _works(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Work]:
    def step() -> None:
        model.train()
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    @torch.no_grad()
    def answer() -> None:
        model.eval()
        model(x)

    return {"step": step, "answer": answer}


def _spent(work: Work, steps: int) -> float:
    began = time.process_time()
    for _ in range(steps):
        work()
    return 1e3 * (time.process_time() - began) / steps


if __name__ == "__main__":
    flags = command.parser(__doc__)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--batch", type=int, default=128)
    flags.add_argument("--steps", type=int, default=20, help="of each turn")
    flags.add_argument("--turns", type=int, default=10)
    command.carry_out("interop-keras", flags, measure, tables.rows)
