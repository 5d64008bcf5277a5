"""CIFAR-10: the generation table for a residual network, on a CPU; the short one on a GPU.

    python -m benchmarks.generation.cifar --data ../shared/data/cifar10        # hours on one core
    python -m benchmarks.generation.cifar --overhead --data ...                # of a training step
    python -m benchmarks.generation.cifar --short --scope norms adapters --data ...   # 1 % moves
    benchmarks/gpu.sh [--rehearse]                                             # ResNet-18, minutes

The network is pretrained once (kept in `--work`, gone on with), taken as the base, and its members
are forks. Attacks at 2/255 and 8/255. `--short` has population, fit, 20 generations and their stale
and white-box rows alone. Rows that are in the seed's JSON are not measured again. Where norms and
head or adapters alone move, the file's name says so. `--network tiny --short`, without data, is a
try of a minute. Writes benchmarks/results/generation-cifar-NETWORK[-SCOPE]-seed*.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch.nn import functional as F

import g2d
from benchmarks.common.measure import PeakMemory, function_columns, stale, white_box
from benchmarks.common.places import RESULTS
from benchmarks.common.tables import TARGETS, markdown
from benchmarks.generation import scopes
from benchmarks.generation.pretraining import NETWORKS, Plan, pretrained
from benchmarks.generation.run import Seed, plain_progress
from benchmarks.generation.ways import Maker
from g2d.core.adam import Adam
from g2d.core.engine import SerialEngine
from g2d.settings import Settings, build
from g2d.tasks.networks import crop_and_flip
from g2d.tasks.placing import placed
from g2d.training.loop import Batches, clean_step, train

PLANS = {"small": Plan(6500), "tiny": Plan(6, 32), "resnet18": Plan(2400, 512)}
MOST_OVERHEAD = 1.2  # of a step, over bare PyTorch
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "population": {"members": 24, "basins": 4, "base_steps": 6500, "early_steps": 400,
                       "fork_steps": 200, "rate": 2e-3, "fork_rate": 1e-3, "pool": 1000},
        "guidance": {"pool": 1000, "polish_steps": 100},
        "gates": {"accuracy_drop": 0.02, "class_drop": 0.08, "stale_asr": 0.7, "attempts": 8},
    },
    "tiny": {
        "population": {"members": 4, "basins": 2, "base_steps": 6, "early_steps": 2,
                       "fork_steps": 2, "batch": 16, "pool": 16, "pool_steps": 1},
        "autoencoder": {"steps": 4, "width": 8},
        "diffusion": {"steps": 4, "width": 8, "depth": 1, "sampler_steps": 2},
        "guidance": {"pool": 16, "pool_steps": 1, "batch": 16, "latent_steps": 1,
                     "polish_steps": 1, "reverse_steps": 1, "particles": 2},
        "gates": {"accuracy_drop": 1.0, "class_drop": 1.0, "stale_asr": 1.0, "distance": 0.0,
                  "pool": 8, "pool_steps": 1},
    },
    "resnet18": {
        "population": {"members": 12, "basins": 3, "base_steps": 2400, "early_steps": 150,
                       "fork_steps": 60, "batch": 256, "rate": 1e-3, "fork_rate": 5e-4,
                       "pool": 1000, "light_eps": 0.0},
        "generator": {"space": "soup"},
        "guidance": {"pool": 1000, "latent_steps": 5, "polish_steps": 40, "particles": 8,
                     "polish_rate": 5e-4},
        "gates": {"accuracy_drop": 0.02, "class_drop": 0.08, "stale_asr": 0.8, "attempts": 4},
    },
}  # fmt: skip


def made_up(name: str) -> g2d.Task:
    """A task with images of noise, to rehearse without data."""
    x = torch.rand(400, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    splits = g2d.split_dataset(x, torch.arange(400) % 10)
    return g2d.Task(name, NETWORKS["tiny"], splits, 10, eps=8 / 255, augment=crop_and_flip)


def task_of(network: str, data: str, device: str) -> g2d.Task:
    """The task, on a device; without a folder of data made-up images, for the tiny network."""
    name = f"cifar-{network}"
    if not data:
        if network != "tiny":
            raise SystemExit("give --data, the folder of CIFAR-10, for all but the tiny network")
        return placed(made_up(name), device)
    splits = g2d.load_task("cifar10", data).splits
    task = g2d.Task(name, NETWORKS[network], splits, classes=10, eps=8 / 255, augment=crop_and_flip)
    return placed(task, device)


class Cifar(Seed):
    """One seed's run on CIFAR-10, from a base that is pretrained."""

    budgets = (2 / 255, 8 / 255)
    examples = (500, 200)
    targets = 2

    def __init__(self, network: str, scope: str, seed: int, options: argparse.Namespace) -> None:
        name = network if scope == "all" else f"{network}-{scope}"
        self.begin(seed, options.out / f"generation-cifar-{name}-seed{seed}.json")
        self.task, self.began = task_of(network, options.data, options.device), time.perf_counter()
        state, found = pretrained(self.task, PLANS[network], options.work / "pretrained")
        self.note("pretrained", {**found, "seconds": round(time.perf_counter() - self.began, 1)})
        tables = {name: dict(table) for name, table in SIZES[network].items()}
        tables["population"]["seed"] = seed
        tables["task"] = {"device": options.device}
        named = scopes.names_of(network, scope)
        if named:
            tables["autoencoder"] = {**tables.get("autoencoder", {}), "scope": named}
        self.settings = build(Settings, tables, "benchmark")
        self.task = replace(self.task, factory=scopes.factory_of(network, scope))
        self.note("scope", {"name": scope, **scopes.share_of(self.task, named, network)})
        vault = options.work / f"cifar-{name}-{seed}"
        self.defence = g2d.Defence.create(self.task, vault, self.settings)
        self.task = self.defence.task
        self.defence.adopt_base(state)

    def build(self, only_population: bool) -> None:
        """Population and fit, each timed; in this process, which has the device."""
        for name in ("population", "fit")[: 1 if only_population else 2]:
            began = time.perf_counter()
            with PeakMemory() as memory:
                if name == "fit":
                    self.defence.fit(progress=plain_progress(self.seed))
                else:
                    self.defence.populate(engine=SerialEngine(), progress=plain_progress(self.seed))
            if f"{name}_seconds" not in self.record:
                self.note(f"{name}_seconds", round(time.perf_counter() - began, 1))
                self.note(f"{name}_peak_mib", round(memory.mib))

    def short(self, count: int) -> None:
        """`count` generations; stale and white-box rows of the last, beside the base that stays."""
        began, times = time.perf_counter(), []
        missing = count + 1 - self.defence.vault.exposures()[-1]
        for _ in range(max(0, missing)):
            start = time.perf_counter()
            self.defence.generate(1, seed=self.seed)
            times.append(time.perf_counter() - start)
        self.shop = Maker(self.defence, self.seed)
        models = [self.defence.generation(number).model() for number in range(1, count + 2)]
        rows: dict[str, Any] = {}
        for eps in self.budgets:
            full, half = (self._trial(eps, n) for n in self.examples)
            last = stale(models[-1], models[:-1], full, half, worst=False)
            stayed = stale(models[0], [models[0]], full, half, worst=False)
            rows[f"eps_{eps:.4f}"] = {
                **last, "white_box": white_box(models[-1], full), "had_it_stayed": stayed["last"],
            }  # fmt: skip
        clean = function_columns(models, [], self.task.splits.test)
        # Not the seconds of this run, which may have found the network pretrained by another.
        pretraining = self.record["pretrained"]["cpu_seconds"]
        self.note("short", {
            "generations": count, "rows": rows, "clean_base": clean["clean_each"][0],
            "clean_mean": statistics.mean(clean["clean_each"][1:]), "seconds_each": times,
            "share_of_a_training": statistics.mean(times) / pretraining if times else None,
            "seconds_rows": round(time.perf_counter() - began - sum(times), 1),
            "seconds_all": round(time.perf_counter() - self.began, 1),
        })  # fmt: skip
        print(self.record["short"], flush=True)


def overhead(task: g2d.Task, rounds: int = 5, steps: int = 10, batch: int = 128) -> float:
    """CPU seconds of a step of ours over those of a bare loop; both in turn, the median ratio."""

    def bare() -> None:
        model, source = task.model(0).train(), torch.Generator().manual_seed(0)
        optimizer = Adam(model.parameters(), 1e-3)
        split = task.splits.train
        for _ in range(steps):
            at = torch.randint(len(split), (batch,), generator=source)
            x = crop_and_flip(split.x[at], source)
            loss = F.cross_entropy(model(x), split.y[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def ours() -> None:
        source = torch.Generator().manual_seed(0)
        batches = Batches(task, task.splits.train, batch, source)
        train(task.model(0), clean_step(task, batches), steps=steps, rate=1e-3)

    bare()
    ours()
    ratios = []
    for _ in range(rounds):
        spent = []
        for way in (bare, ours):
            began = time.process_time()
            way()
            spent.append(time.process_time() - began)
        ratios.append(spent[1] / spent[0])
    return statistics.median(ratios)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="folder of the packed CIFAR-10 arrays")
    parser.add_argument("--network", choices=list(NETWORKS), default="small")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where vaults are kept")
    parser.add_argument("--short", action="store_true", help="20 generations, stale and white-box")
    parser.add_argument("--generations", type=int, default=20, help="of --short")
    parser.add_argument("--scope", choices=scopes.SCOPES, nargs="+", default=["all"])
    parser.add_argument("--overhead", action="store_true", help="of a step over bare PyTorch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.overhead:
        found = overhead(task_of(options.network, options.data, "cpu"))
        print(f"a step takes {found:.3f} times a bare one's CPU time (at most {MOST_OVERHEAD})")
        raise SystemExit(found > MOST_OVERHEAD)
    for seed in options.seeds:
        records = {scope: measured(scope, seed, options) for scope in options.scope}
        if options.short:
            print(markdown(TARGETS, scopes.rows(records)))


def measured(scope: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is asked for with one scope and one seed; return its record."""
    run = Cifar(options.network, scope, seed, options)
    run.build(only_population=False)
    with run.defence:
        if options.short:
            run.short(options.generations)
        else:
            run.prepare()
            run.waves()
            run.product()
            run.controls()
    return run.record


if __name__ == "__main__":
    main()
