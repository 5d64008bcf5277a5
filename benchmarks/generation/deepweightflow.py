"""DeepWeightFlow's MNIST rig: 100 MLPs of its recipe, an unguided generator, speed and accuracy.

    python -m benchmarks.generation.deepweightflow --data ../shared/data/mnist

Recipe: 784-32-32-10, He-uniform, zero biases, seeds 0-99, 5 epochs of all 60,000
training images, Adam 1e-3, batch 64; aligned by weight matching. About 6 CPU minutes on one core.
Writes benchmarks/results/deepweightflow.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn import functional as F

import g2d
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import hardware, save
from g2d.core.types import State
from g2d.generator import Generator, hidden_units
from g2d.redteam.novelty import Distances
from g2d.redteam.scoring import Trial
from g2d.settings import AutoencoderSettings, DiffusionSettings
from g2d.tasks.inference import accuracy, load_model
from g2d.tasks.splits import Split
from g2d.weights.checkpoints import pack, unpack

NETWORKS, EPOCHS, SAMPLES = 100, 5, 300


def mlp() -> nn.Module:
    """784-32-32-10 with He-uniform weights and zero biases; 26,506 parameters."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def trained(task: g2d.Task, split: Split, seed: int) -> State:
    """One network of the recipe."""
    model, g = task.model(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(split), generator=g).split(64):
            loss = F.cross_entropy(model(split.x[index]), split.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def members(task: g2d.Task, work: Path) -> list[State]:
    """The recipe's networks on all training data; those that lie in `work` are read."""
    s = task.splits
    whole = Split(
        torch.cat([s.train.x, s.guide.x, s.gate.x]), torch.cat([s.train.y, s.guide.y, s.gate.y])
    )
    states = []
    work.mkdir(parents=True, exist_ok=True)
    for seed in range(NETWORKS):
        kept = work / f"{seed:03d}.safetensors"
        if not kept.exists():
            data = pack(trained(task, whole, seed))
            kept.with_suffix(".tmp").write_bytes(data)
            kept.with_suffix(".tmp").replace(kept)
        states.append(unpack(kept.read_bytes()))
        if seed % 10 == 9:
            print(f"trained {seed + 1} of {NETWORKS}", flush=True)
    return states


def stale(task: g2d.Task, models: Sequence[nn.Module]) -> dict[str, float]:
    """ASR of attacks on one generated network against the next, by budget."""
    trial = Trial.of(task, 500, seed=0)
    found = {}
    for eps in (0.1, 0.2):
        at = dataclasses.replace(trial, eps=eps)
        pairs = [(models[i], models[i + 1]) for i in range(0, 20, 2)]
        found[str(eps)] = statistics.mean(
            at.score(b, at.craft(a, i)).value for i, (a, b) in enumerate(pairs)
        )
    return found


def measure(task: g2d.Task, states: Sequence[State]) -> dict[str, Any]:
    """Fit on the members, sample, judge."""
    test = task.splits.test
    clean = [accuracy(load_model(task, state), test) for state in states]
    began = time.process_time()
    generator = Generator.fit(
        task, states, list(range(NETWORKS)),
        AutoencoderSettings(align=True, mixture=0.0, sigma=0.05, rho=0.05, steps=500),
        DiffusionSettings(steps=4000, sampler_steps=20), seed=0,
    )  # fmt: skip
    fit = time.process_time() - began
    g = torch.Generator().manual_seed(1)
    began = time.process_time()
    vectors = [generator.sample(1, g)[0] for _ in range(SAMPLES)]
    each = (time.process_time() - began) / SAMPLES
    generated = [generator.to_state(v) for v in vectors]
    models = [load_model(task, state) for state in generated]
    made = [accuracy(model, test) for model in models]
    distances = Distances(states[:50], hidden_units(task))
    near = [distances.nearest(state)[0] / distances.unit for state in generated[:20]]
    return {
        "hardware": hardware(),
        "parameters": generator.codec.size,
        "members": {"mean": statistics.mean(clean), "std": statistics.stdev(clean)},
        "generated": {"mean": statistics.mean(made), "std": statistics.stdev(made), "n": SAMPLES},
        "drop_points": 100 * (statistics.mean(clean) - statistics.mean(made)),
        "fit_cpu_seconds": fit,
        "milliseconds_each": 1000 * each,
        "stale_asr_between_generated": stale(task, models),
        "distance_to_nearest_of_50_members_in_units_of_their_own": statistics.mean(near),
    }


def main() -> None:
    """Train, fit, sample, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the MNIST idx files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=RUNS / "deepweightflow")
    options = parser.parse_args()
    torch.set_num_threads(1)
    mnist = g2d.load_task("mnist", options.data)
    task = dataclasses.replace(mnist, name="mlp", factory=mlp, augment=None)
    result = measure(task, members(task, options.work))
    save(options.out / "deepweightflow.json", result)
    print(result)


if __name__ == "__main__":
    main()
