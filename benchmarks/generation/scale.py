"""How codec, autoencoder, diffusion and decoding scale with the number of parameters P.

    python -m benchmarks.generation.scale --data ../shared/data/cifar10

P = 10^4, 10^5, 10^6 (plain CNNs) and 1.1 * 10^7 (ResNet-18 with batch norm), CIFAR-10 inputs, 24
checkpoints each: forks of a few steps from one start. Those networks are not trained to any
accuracy (that would take a GPU); what is measured is time and memory. The behavioural term costs
forward passes of the network, not P, and is off here. Each size runs in a process of its own, so
that its peak memory is its own. Writes benchmarks/results/scale.json and docs/pictures/scale.png.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn import functional as F

import g2d
from benchmarks.common.places import DOCS, RESULTS
from benchmarks.common.results import hardware, save
from g2d.core.types import State
from g2d.generator import Generator
from g2d.settings import AutoencoderSettings, DiffusionSettings
from g2d.tasks.networks import resnet18

CHECKPOINTS = 24
WIDTHS = {"1e4": 10, "1e5": 33, "1e6": 105}


def cnn(width: int) -> nn.Module:
    """Three strided convolutions of `width`, 2 width, 4 width channels and a linear head."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


def forks(task: g2d.Task, steps: int) -> list[State]:
    """Checkpoints a few steps away from one start, each on its own batches."""
    start = task.model(0).state_dict()
    start = {name: tensor.clone() for name, tensor in start.items()}
    states = []
    for seed in range(CHECKPOINTS):
        model, g = task.model(0), torch.Generator().manual_seed(seed)
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        for _ in range(steps):
            index = torch.randint(len(task.splits.train), (16,), generator=g)
            loss = F.cross_entropy(model(task.splits.train.x[index]), task.splits.train.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        states.append(
            {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        )
    return states


def measure(size: str, data: str) -> dict[str, object]:
    """One size: forks, fit, samples, decode; times in CPU seconds of one core."""
    torch.set_num_threads(1)
    whole = g2d.load_task("cifar10", data).splits
    few = g2d.Splits(
        *(getattr(whole, n).take(range(600)) for n in ("train", "guide", "gate", "test"))
    )
    del whole
    factory = resnet18 if size == "1e7" else (lambda: cnn(WIDTHS[size]))
    task = g2d.Task(size, factory, few, classes=10)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.process_time()
    states = forks(task, 3)
    marks = {"forks": time.process_time() - began}
    stages: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        stages[stage] = time.process_time()

    began = time.process_time()
    generator = Generator.fit(
        task, states, [0] * CHECKPOINTS, AutoencoderSettings(behaviour=0.0, steps=500),
        DiffusionSettings(steps=3000), seed=0, progress=progress,
    )  # fmt: skip
    marks["fit"] = time.process_time() - began
    marks["diffusion"] = stages["diffusion"] - stages["autoencoder"]
    marks["codec_and_autoencoder"] = marks["fit"] - marks["diffusion"]
    began = time.process_time()
    vectors = generator.sample(4, torch.Generator().manual_seed(0))
    marks["sample_and_decode_each"] = (time.process_time() - began) / 4
    began = time.process_time()
    state = generator.to_state(vectors[0])
    marks["state_dict"] = time.process_time() - began
    exact = generator.codec.decode(generator.codec.encode(states[3]))
    return {
        "parameters": generator.codec.size,
        "cpu_seconds": marks,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "mib_before": loaded,
        "round_trip_exact": all(torch.equal(exact[n], t) for n, t in states[3].items()),
        "finite": all(bool(torch.isfinite(t).all()) for t in state.values()),
    }


def draw(results: dict[str, dict[str, object]], path: Path) -> None:
    """Time and memory against P, both axes logarithmic, with a line of slope one."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    P = [r["parameters"] for r in results.values()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for key, label in (
        ("codec_and_autoencoder", "codec + span + autoencoder"),
        ("diffusion", "diffusion"),
        ("sample_and_decode_each", "one network: sample + decode"),
    ):
        left.loglog(P, [r["cpu_seconds"][key] for r in results.values()], "o-", label=label)  # type: ignore[index]
    last = results["1e7"]["cpu_seconds"]["sample_and_decode_each"]  # type: ignore[index]
    left.loglog(P, [last * p / P[-1] for p in P], "k:", label="linear in P")  # type: ignore[operator]
    left.set(xlabel="parameters P", ylabel="CPU seconds, one core", title="Time")
    left.legend(fontsize=8)
    right.loglog(P, [r["peak_mib"] for r in results.values()], "o-", label="peak memory")
    right.axhline(8192, color="k", ls=":", label="8 GiB")
    right.set(xlabel="parameters P", ylabel="MiB", title="Memory (24 checkpoints)")
    right.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run every size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the packed CIFAR-10 arrays")
    parser.add_argument("--size", choices=[*WIDTHS, "1e7"], help="one size, printed as JSON")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measure(options.size, options.data)))
        return
    results = {}
    for size in (*WIDTHS, "1e7"):
        command = [
            sys.executable,
            "-m",
            "benchmarks.generation.scale",
            "--data",
            options.data,
            "--size",
            size,
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[size] = json.loads(output.splitlines()[-1])
        print(size, results[size], flush=True)
        save(options.out / "scale.json", {"hardware": hardware(), "sizes": results})
    draw(results, DOCS / "pictures" / "scale.png")


if __name__ == "__main__":
    main()
