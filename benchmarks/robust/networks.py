"""Networks and rows of one seed of benchmarks.robust: made or measured once, then read."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.results import commit, hardware, save
from benchmarks.robust.judge import Judge
from benchmarks.robust.plan import (
    CHAIN,
    FINER,
    FORKS,
    JOINT,
    MANY,
    RECIPES,
    STUDENTS,
    N,
    Recipe,
    named,
)
from g2d.core.seeds import seed_of
from g2d.settings import HardenSettings, Settings, build
from g2d.tasks.builtin import load_task
from g2d.tasks.inference import load_model
from g2d.tasks.networks import mnist_robust_cnn
from g2d.tasks.task import Task
from g2d.training.population import Trained, TrainingJob, run_job
from g2d.training.recipes import Teacher
from g2d.weights.checkpoints import digest, unpack

COMMIT = commit()


class Networks:
    """One seed: networks that are trained once, rows that are measured once."""

    networks: Mapping[str, Recipe] = RECIPES | STUDENTS

    def __init__(self, seed: int, data: str, out: Path, work: Path) -> None:
        self.seed, self.path = seed, out / f"robust-mnist-seed{seed}.json"
        self.work = work / f"robust-{seed}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {"seed": seed, "hardware": hardware(), "rows": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text())
        self.record.setdefault("trainings", {})
        self.task = load_task("mnist-robust", data)
        tables = {name: dict(table) for name, table in self.task.settings.items()}
        tables["task"] = {"name": "mnist-robust", "data": data}
        settings = build(Settings, tables, "the task's settings")
        self.settings = settings.override(population__seed=seed)
        self.agree()
        draws = torch.Generator().manual_seed(seed_of(seed, "examples"))
        many = self.task.splits.test.sample(MANY, draws)
        self.judge = Judge(self.task, many.take(range(N)), many, seed)

    def agree(self) -> None:
        """Refuse to mix rows of other settings or other sizes with those of now."""
        now = {
            "settings": self.settings.override(task__data="").to_toml(),
            "sizes": {"N": N, "MANY": MANY, "CHAIN": CHAIN, "JOINT": JOINT},
        }
        for key, value in now.items():
            if self.record.setdefault(key, value) != value:
                raise SystemExit(f"{self.path} is of other {key}: move it and runs/ away first")

    def note(self, *keys: str, value: Any) -> None:
        """Keep one result, beside those of other processes that measure the same seed."""
        with open(self.work / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                kept = {key: self.record[key] for key in ("settings", "sizes")}
                self.record = kept | json.loads(self.path.read_text())
            place = self.record
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = value
            save(self.path, self.record)

    def row(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row unless it is there."""
        if name in self.record["rows"]:
            return
        began = time.process_time()
        found = measure()
        found["judging_cpu_seconds"] = round(time.process_time() - began, 1)
        found["commit"] = COMMIT
        self.note("rows", name, value=found)
        shown = {k: v for k, v in found.items() if isinstance(v, float | int)}
        print(f"seed {self.seed}: {name}: {shown}", flush=True)

    def file(self, name: str) -> Path:
        """Where a network's weights lie."""
        return self.work / f"{name.replace(' ', '-').replace('/', '_')}.safetensors"

    # --- training --------------------------------------------------------------------------------

    def trained(self, name: str, make: Callable[[], Trained]) -> Trained:
        """Train a network, or read it; its CPU seconds and its looks stay in the record."""
        path, known = self.file(name), self.record["trainings"].get(name, {})
        if not known or not path.exists():
            cpu, wall = time.process_time(), time.perf_counter()
            done = make()
            path.write_bytes(done.weights)
            path.with_suffix(".attacks").write_bytes(done.attacks)
            took = {
                "sha256": digest(done.weights),
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "wall_seconds": round(time.perf_counter() - wall, 1),
                "info": dict(done.info),
            }
            if known and known["sha256"] != took["sha256"]:
                raise SystemExit(
                    f"{name}, trained again, is another network than that of the rows in "
                    f"{self.path} (other hardware?): move that file away and measure anew"
                )
            self.note("trainings", name, value=took)
            print(f"seed {self.seed}: {name}: {took['cpu_seconds']} CPU s", flush=True)
        attacks, weights = path.with_suffix(".attacks").read_bytes(), path.read_bytes()
        if digest(weights) != self.record["trainings"][name]["sha256"]:
            raise SystemExit(f"{path} is not the network of the rows in {self.path}: move one away")
        return Trained(weights, attacks, self.record["trainings"][name]["info"])

    def base(self, name: str, part: float = 1) -> Trained:
        """A network by the recipe of a row, of a `part`-th of its steps."""
        row = self.networks[name]
        task = replace(self.task, factory=row.factory) if row.factory else self.task
        harden = replace(self.settings.harden, **row.harden)
        population, share = self.settings.population, row.part * part
        population = replace(population, base_steps=round(population.base_steps / share))
        teacher = None
        if row.teacher:
            of = self.networks[row.teacher].factory or mnist_robust_cnn
            teacher = Teacher(
                self.file(row.teacher).read_bytes(), f"{of.__module__}:{of.__name__}"
            )  # fmt: skip
        job = TrainingJob(task, "base", 0, 0, "base", population, None, (), (), harden, teacher)
        key = named(name, part)
        made = self.trained(key, lambda: run_job(job))
        split = self.judge.many if key in FINER else None

        def judged() -> dict[str, Any]:
            row = self.judge.judge([self.model(made.weights, task)], self.cpu(key), split)
            return row | {"switched_to_pgd": made.info.get("switched_to_pgd")}

        self.row(key, judged)
        return made

    def forks(
        self, name: str, starts: Sequence[bytes], pools: Sequence[bytes], harden: HardenSettings
    ) -> list[Trained]:
        """Basins of forks, each fork of the one before it; all learn the attacks on the base."""
        recipe, s, made = "repelled" if pools else "forks", self.settings.population, []
        at, attacks = list(starts), list(pools)
        for index in range(FORKS[name]):
            basin = index % len(starts)
            job = TrainingJob(
                self.task,
                "member",
                index,
                basin,
                recipe,
                s,
                at[basin],
                tuple(attacks),
                harden=harden,
            )
            made.append(self.trained(f"{name} {index}", lambda job=job: run_job(job)))
            at[basin] = made[-1].weights
            attacks += [made[-1].attacks] if pools else []
        return made

    def cpu(self, name: str) -> float:
        return self.record["trainings"][name]["cpu_seconds"]

    def model(self, weights: bytes, task: Task | None = None) -> nn.Module:
        return load_model(task or self.task, unpack(weights))
