"""A verification of ownership: how long it takes, and whom it accuses that is not guilty.

    python -m benchmarks.ownership.verification --data path/to/mnist      # three seeds
    python -m benchmarks.ownership.verification --task digits --models 3 --keys 1000

For each seed: a key and a commitment of an empty vault, a network that learns its triggers beside
the task, and --models networks that are trained without. `g2d watermark verify` is run on the
marked one as people run it, in a process of its own with one thread, and timed whole: start, torch,
weights, triggers, answers, claim. --keys random keys are held against the marked network's
answers; about the triggers of --own more keys the network is asked anew. Each independent network
is asked about every set that may be queried. Writes results/ownership-verification.json; a seed
that is there already, with the same arguments, is not measured again.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from benchmarks.common.command import carry_out, parser
from benchmarks.common.places import RESULTS, ROOT
from benchmarks.common.results import record, save
from g2d.protect.watermark import (
    InputForm,
    WatermarkKey,
    make_labels,
    make_triggers,
    needed_hits,
    triggers_of,
)
from g2d.protect.watermark.commitment import Commitment
from g2d.protect.watermark.publishing import publish
from g2d.settings import Settings
from g2d.tasks.builtin import load_task
from g2d.tasks.inference import accuracy, predict
from g2d.tasks.task import Task
from g2d.training.loop import Batches, train
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import pack

NAME = "ownership-verification"


def measure(given: Namespace, folder: Path) -> dict[str, Any]:
    """Every seed, from what is there already or anew."""
    out = given.out or RESULTS / f"{NAME}.json"
    what = {name: str(value) for name, value in vars(given).items() if name not in ("out", "seeds")}
    old = json.loads(out.read_text()) if out.is_file() else {}
    known = old.get("seeds", {}) if old.get("measured") == what else {}
    result: dict[str, Any] = {**record(given), "measured": what, "seeds": dict(known)}
    task = load_task(given.task, given.data)
    for seed in range(given.seeds):
        if str(seed) not in result["seeds"]:
            result["seeds"][str(seed)] = one_seed(given, task, folder / str(seed), seed)
            save(out, result)
    return result


def one_seed(given: Namespace, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    """A marked network, independent ones, forged keys and the clock."""
    folder.mkdir()
    form, file = InputForm.of(task), folder / "mark.key"
    text = Settings().override(task__name=task.name, task__data=given.data).to_toml()
    with Vault.create(folder / "vault", text) as vault:
        _, published = publish(vault, Settings.from_vault(text), form, file)
    key, commitment = WatermarkKey.read(file), published.commitment
    sets = [triggers_of(key.of_set(i), form, commitment.n) for i in range(commitment.reserve + 1)]
    marked = trained(task, given.steps, 1000 * seed, sets)
    (folder / "marked.safetensors").write_bytes(pack(marked.state_dict()))
    return {
        "n": commitment.n,
        "marked": hits_of(marked, sets),
        "accuracy": accuracy(marked, task.splits.test),
        "needed": needed_hits(commitment.n, form.classes, suspects=commitment.reserve),
        "needed_128": needed_hits(commitment.n, form.classes, 2.0**-128, commitment.reserve),
        "independent": [
            hits_of(trained(task, given.steps, 1000 * seed + 1 + i), sets[:-1])
            for i in range(given.models)
        ],
        **forged(marked, commitment, sets[0][0], given.keys, given.own),
        "seconds": [verification(file, folder, i) for i in range(3)],
        "torch": timed([sys.executable, "-c", "import torch"]),
    }


def trained(task: Task, steps: int, seed: int, sets: list[tuple[Tensor, Tensor]] = ()) -> nn.Module:
    """A network of the task; of `sets` it learns all triggers, a few in each step, besides."""
    model, generator = task.model(seed), torch.Generator().manual_seed(seed)
    batches = Batches(task, task.splits.train, 128, generator)
    x, y = (torch.cat(parts) for parts in zip(*sets, strict=True)) if sets else (None, None)

    def objective(network: nn.Module) -> Tensor:
        inputs, labels = batches.draw()
        loss = task.loss_of(network(inputs), labels)
        if x is None or y is None:
            return loss
        chosen = torch.randint(len(x), (128,), generator=generator)
        return loss + task.loss_of(network(x[chosen]), y[chosen])

    return train(model, objective, steps=steps, rate=3e-3).requires_grad_(False)


def hits_of(model: nn.Module, sets: list[tuple[Tensor, Tensor]]) -> list[int]:
    """Hits in each set."""
    return [int((predict(model, x).argmax(1) == y).sum()) for x, y in sets]


def forged(
    model: nn.Module, commitment: Commitment, x: Tensor, keys: int, own: int
) -> dict[str, Any]:
    """Random keys, drawn as if stretched: hits of labels among fixed answers, and on triggers."""
    form, n = commitment.form, commitment.n
    answers = predict(model, x).argmax(1)
    labels = [int((make_labels(key, form, n) == answers).sum()) for key in _random(keys)]
    drawn = [hits_of(model, [make_triggers(key, form, n)])[0] for key in _random(own)]
    needed = needed_hits(n, form.classes, suspects=commitment.reserve) or n + 1
    return {
        "keys": keys, "most": max(labels), "accepted": sum(h >= needed for h in labels + drawn),
        "own_keys": own, "most_own": max(drawn, default=0),
    }  # fmt: skip


def _random(count: int) -> Iterator[bytes]:
    return (secrets.token_bytes(32) for _ in range(count))


def verification(key: Path, folder: Path, turn: int) -> dict[str, float]:
    """Seconds of one run of the command as people run it: the same suspect, the same set."""
    return timed([
        sys.executable, "-m", "g2d", "watermark", "verify", str(key), "--set", "0",
        "--model", str(folder / "marked.safetensors"), "--vault", str(folder / "vault"),
        "--out", str(folder / f"claim{turn}.json"),
    ])  # fmt: skip


def timed(command: list[str]) -> dict[str, float]:
    """Run a command with one thread: seconds by the clock, and of CPU."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    before, began = _spent(), time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}")
    return {"wall": time.monotonic() - began, "cpu": _spent() - before}


def _spent() -> float:
    times = psutil.Process().cpu_times()
    return times.children_user + times.children_system


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The rows of the table of targets."""
    seeds = list(result["seeds"].values())
    cpu = [run["cpu"] for seed in seeds for run in seed["seconds"]]
    wall = [run["wall"] for seed in seeds for run in seed["seconds"]]
    hits = [count for seed in seeds for model in seed["independent"] for count in model]
    models = sum(len(seed["independent"]) for seed in seeds)
    tried = sum(seed["keys"] + seed["own_keys"] for seed in seeds)
    asked = seeds[0].get("n", 100)
    least = min(count for seed in seeds for count in seed["marked"])
    return [
        ("CPU seconds of a verification, most", "≤ 5", f"{max(cpu):.1f} ({max(wall):.1f} wall)"),
        ("of which importing torch", "–", f"{max(seed['torch']['cpu'] for seed in seeds):.1f}"),
        ("forged keys accepted", "0 of 10,000",
         f"{sum(s['accepted'] for s in seeds)} of {tried:,}"),
        (f"most hits of a forged key, of {asked}", "–",
         max(max(s["most"], s["most_own"]) for s in seeds)),
        (f"most hits of {models} independent models", f"≤ {asked // 4}", max(hits, default="–")),
        ("least hits of the marked networks, trained here, in a set", "–", least),
    ]  # fmt: skip


def main() -> None:
    """Read the flags, measure, print."""
    flags = parser(__doc__)
    flags.add_argument("--task", default="mnist")
    flags.add_argument("--data", default="", help="folder of the task's data")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--steps", type=int, default=1500, help="optimiser steps of a network")
    flags.add_argument("--models", type=int, default=20, help="independent networks a seed")
    flags.add_argument("--keys", type=int, default=10_000, help="forged keys a seed")
    flags.add_argument("--own", type=int, default=200, help="more, asked about their own triggers")
    carry_out(NAME, flags, measure, rows)


if __name__ == "__main__":
    main()
