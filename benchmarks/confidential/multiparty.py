"""Inference by parties: seconds and bytes, agreement with torch, rotation under load, a dead party.

    make smpc
    python -m benchmarks.confidential.multiparty --data ../shared/data/mnist    # half an hour, idle
    python -m benchmarks.confidential.multiparty --smoke --out /tmp/smoke.json  # minutes, digits

All parties run on this machine, on its cores together: each party of its own machine is faster, and
has a network's latency for each of some hundred rounds. `sent` are the bytes that parties send to
one another, all of them together; what the client sends and gets is not among them. Answers are
compared with the network's own in torch (float32).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from benchmarks.common.command import carry_out, parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import record
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.confidential.parties import Parties
from g2d import Task, load_task
from g2d.core.types import Array
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.translate import Translated, translate

NAME, MARK = "confidential-multiparty", "confidential-multiparty"
NEAR = 1e-3
_UNLIMITED = {"per_minute": 1_000_000}
_GENERATIONS = 6


def probe() -> nn.Module:
    """The small CNN that the targets are of: 1 to 8 to 16 channels, 32, 10; 28,874 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def trained(model: nn.Module, task: Task, steps: int, seed: int) -> nn.Module:
    """A network after some steps of Adam, frozen."""
    source = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    split = task.splits.train
    for _ in range(steps):
        chosen = torch.randint(len(split), (128,), generator=source)
        optimiser.zero_grad()
        F.cross_entropy(model(split.x[chosen]), split.y[chosen]).backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def generations(task: Task, small: bool, steps: int) -> list[tuple[nn.Module, Translated]]:
    """Networks that take each other's place: one is trained, the others go on from it."""
    torch.manual_seed(0)
    shape = tuple(task.splits.train.x.shape[1:])
    base = trained(probe() if small else task.model(0), task, steps, 0)
    made = []
    for seed in range(_GENERATIONS):
        model = probe() if small else task.model(0)
        model.load_state_dict(base.state_dict())
        model = trained(model.train().requires_grad_(True), task, seed * steps // 5, seed)
        made.append((model, translate(model, shape, (0.0,), (1.0,))))
    return made


def timed(parties: Parties, x: Array, singles: int, batch: int, batches: int) -> dict[str, Any]:
    """Medians of single requests and of batches; the first of each compiles and is not counted."""
    found: dict[str, Any] = {}
    with parties.client() as client:
        for name, n, times in (("single", 1, singles), ("batch", batch, batches)):
            took, cpu, sent = [], [], []
            for place in range(times + 1):
                at = place * n % (len(x) - n + 1)
                began = time.perf_counter()
                answer = client.infer(x[at : at + n])
                if place:
                    took.append((time.perf_counter() - began) / n)
                    cpu.append(answer.cpu / n)
                    sent.append(answer.sent / n / 1e6)
            found[name] = {
                "n": n, "seconds": statistics.median(took), "cpu": statistics.median(cpu),
                "mb": statistics.median(sent),
            }  # fmt: skip
    return found


def agreement(parties: Parties, x: Array, expected: Array, batch: int) -> dict[str, Any]:
    """How many answers name torch's class, and how far logits are off."""
    with parties.client() as client:
        logits = np.concatenate(
            [client.infer(x[at : at + batch]).logits for at in range(0, len(x), batch)]
        )
    off = np.abs(logits - expected)
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    return {"n": len(x), "same": same, "largest": float(off.max()), "mean": float(off.mean())}


def rotated(
    parties: Parties, nets: Sequence[tuple[nn.Module, Translated]], first: int, x: Array, want: int
) -> dict[str, Any]:
    """One client asks without a break while generations are shared; which answers are mixed."""
    given = {first: 0}
    answers: list[tuple[int, int, Array]] = []

    def ask() -> None:
        with parties.client() as client:
            while len(answers) < want:
                place = len(answers) % len(x)
                found = client.infer(x[place : place + 1])
                answers.append((place, found.number, found.logits))

    thread = threading.Thread(target=ask)
    thread.start()
    number, took = first, []
    while thread.is_alive():
        number += 1
        given[number] = number % len(nets)
        net = nets[given[number]][1]
        began = time.perf_counter()
        parties.deal(number, net.program, net.parameters)
        took.append(time.perf_counter() - began)
        thread.join(0.5)
    with torch.no_grad():
        expected = [model(torch.from_numpy(x)).numpy() for model, _ in nets]
    off = [
        float(np.abs(logits[0] - expected[given[n]][place]).max()) for place, n, logits in answers
    ]
    return {
        "answers": len(answers), "rotations": len(took), "seen": len({n for _, n, _ in answers}),
        "mixed": sum(one > NEAR for one in off), "share_seconds": statistics.median(took),
        "falls": sum(a[1] > b[1] for a, b in itertools.pairwise(answers)),
    }  # fmt: skip


def killed(parties: Parties, x: Array) -> dict[str, float]:
    """Seconds from a party's SIGKILL under load to the client's refusal, and from its start anew to
    the first answer."""
    refused: list[float] = []

    def ask() -> None:
        with parties.client() as client:
            try:
                while True:
                    client.infer(x[:1])
            except MultipartyError:
                refused.append(time.perf_counter())

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(2.0)
    began = time.perf_counter()
    parties.kill(max(parties.config.ranks))
    thread.join()
    again = time.perf_counter()
    parties.start(max(parties.config.ranks))
    while True:
        try:
            with parties.client() as client:
                client.infer(x[:1])
            break
        except MultipartyError:
            time.sleep(0.02)
    return {"refusal": refused[0] - began, "back": time.perf_counter() - again}


def uniform(parties: Parties) -> list[float]:
    """p-values of a chi-squared test of each party's shares, byte by byte, against uniform."""
    found = []
    for rank in parties.config.ranks:
        counts = np.bincount(np.frombuffer(parties.shares(rank), np.uint8), minlength=256)
        found.append(float(stats.chisquare(counts).pvalue))
    return found


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, one set-up of parties after another."""
    name, data = ("digits", "") if given.smoke else ("mnist", str(given.data))
    task = load_task(name, data)
    x = task.splits.test.x.numpy()
    result = record(given) | {"task": name, "rows": []}
    setups = [("aby3", True, True), ("aby3", False, True), ("cheetah", True, True)]
    setups = (
        [(p, c, False) for p, c, _ in setups] if given.smoke else [*setups, ("aby3", True, False)]
    )
    for protocol, clip, small in setups:
        nets = generations(task, small, given.steps)
        size = len(result["rows"])
        with Parties(folder / str(size), protocol, bounds=clip, **_UNLIMITED) as parties:
            parties.start()
            parties.deal(1, nets[0][1].program, nets[0][1].parameters)
            heavy = protocol == "cheetah"
            batch, batches = (20, 1) if heavy else (given.batch, given.batches)
            found = timed(parties, x, given.singles // (5 if heavy else 1), batch, batches)
            row = {"protocol": protocol, "clip": clip, "network": "small" if small else name}
            result["rows"].append(row | found)
            if not size:
                with torch.no_grad():
                    expected = nets[0][0](torch.from_numpy(x[: given.images])).numpy()
                result["agreement"] = agreement(parties, x[: given.images], expected, batch)
                result["uniform"] = uniform(parties)
                result["rotation"] = rotated(parties, nets, 1, x[:50], given.answers)
                result["killed"] = killed(parties, x)
    return result


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table."""
    made: list[tuple[object, ...]] = []
    for place, row in enumerate(result["rows"]):
        one, many = row["single"], row["batch"]
        clip = ", ranges checked by the parties" if row["clip"] else ""
        about = f"{row['protocol']}, {row['network']} network{clip}"
        goals = ("≤ 0.25 s, ≤ 0.7 MB", "≤ 40 ms") if place == 1 else ("", "")
        made += [
            (f"{about}: one image", goals[0], f"{one['seconds']:.2f} s, {one['mb']:.2f} MB"),
            (f"{about}: batch of {many['n']}, an image", goals[1],
             f"{1e3 * many['seconds']:.0f} ms, {many['mb']:.2f} MB"),
        ]  # fmt: skip
    same, turn, dead = result["agreement"], result["rotation"], result["killed"]
    made += [
        ("class as torch's", "≥ 9,990 of 10,000", f"{same['same']:,} of {same['n']:,}"),
        ("largest error of a logit", "", f"{same['largest']:.1e}"),
        (f"mixed answers under {turn['rotations']} rotations", "0 of 1,000",
         f"{turn['mixed']} of {turn['answers']:,}"),
        ("sharing a generation, under that load", "", f"{turn['share_seconds']:.2f} s"),
        ("a party is killed: refusal after", "≤ 5 s", f"{dead['refusal']:.2f} s"),
        ("started anew: first answer after", "", f"{dead['back']:.1f} s"),
        ("shares of each party against uniform bytes, p", "",
         ", ".join(f"{p:.2f}" for p in result["uniform"])),
    ]  # fmt: skip
    return made


def made(folder: Path = RESULTS) -> dict[str, str]:
    """The block of docs/confidential.md, by the name of its mark."""
    path = folder / f"{NAME}.json"
    if not path.exists():
        return {MARK: markdown(TARGETS, [(f"`{path.name}`", NOTHING, "not measured yet")])}
    result = json.loads(path.read_text("utf-8"))
    return {MARK: f"{markdown(TARGETS, rows(result))}\n\nCommit {result['commit'] or 'unknown'}."}


def main() -> None:
    """Measure and keep."""
    flags = parser(__doc__)
    flags.add_argument("--data", type=Path, default=Path("../shared/data/mnist"), metavar="FOLDER")
    flags.add_argument("--smoke", action="store_true", help="digits, and little of everything")
    for name, number in (("steps", 1500), ("singles", 30), ("batch", 250), ("batches", 5),
                         ("images", 10_000), ("answers", 1000)):  # fmt: skip
        flags.add_argument(f"--{name}", type=int, default=number)
    carry_out(NAME, flags, measure, rows)


if __name__ == "__main__":
    main()
