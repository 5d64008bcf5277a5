"""Inference by parties: seconds and bytes, agreement with torch, rotation under load, a dead party.

    make smpc
    python -m benchmarks.confidential.multiparty --data ../shared/data/mnist    # half an hour, idle
    python -m benchmarks.confidential.multiparty --smoke --out /tmp/smoke.json  # minutes, digits

Goes on where it stopped: what stands in the result is not measured again. Red-team rows of parties'
views, and of parties and clients that mean harm, are in `views`.
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
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common.command import parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import commit, hardware, hold_to, save
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.confidential import views
from benchmarks.confidential.answers import COLUMNS, IDS, line
from benchmarks.confidential.parties import Parties
from g2d import Task, load_task
from g2d.core.types import Array
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.translate import Translated, translate

NAME, MARK = "confidential-multiparty", "confidential-multiparty"
ATTACKS = "confidential-multiparty-attacks"
SIZES = {
    "steps": 1500, "singles": 30, "batch": 250, "batches": 5, "images": 10_000, "answers": 1000,
    "viewed": 2000, "times": 12,
}  # fmt: skip
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


def probe_for(task: Task, smoke: bool) -> nn.Module:
    """The small network of a task's inputs: digits have one of their own."""
    return task.model(0) if smoke else probe()


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
    small = small and task.name != "digits"
    base = trained(probe_for(task, not small), task, steps, 0)
    made = []
    for seed in range(_GENERATIONS):
        model = probe_for(task, not small)
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


Nets = list[tuple[nn.Module, Translated]]
Result = dict[str, Any]
SETUPS: dict[str, tuple[str, bool, bool]] = {
    "aby3": ("aby3", True, True), "aby3, ranges unchecked": ("aby3", False, True),
    "cheetah": ("cheetah", True, True), "aby3, the task's network": ("aby3", True, False),
}  # fmt: skip
"""Protocol, whether parties check ranges, whether the network is the small one."""


class Run:
    """Rows that are measured once, each kept as soon as it is there."""

    def __init__(self, given: argparse.Namespace, path: Path, folder: Path) -> None:
        self.given, self._path, self._folder = given, path, folder
        self.record: Result = {"rows": {}}
        if path.exists():
            self.record = json.loads(path.read_text("utf-8"))
        hold_to(self.record, {name: getattr(given, name) for name in (*SIZES, "smoke")}, path)
        name, data = ("digits", "") if given.smoke else ("mnist", str(given.data))
        self.task = load_task(name, data)
        self.x = self.task.splits.test.x.numpy()

    def measure(self) -> None:
        """Every row that is not there, one set-up of parties after another."""
        for setup, (protocol, bounds, small) in SETUPS.items():
            missing = {
                name: what for name, what in self._rows(protocol, bounds, small).items()
                if f"{setup}: {name}" not in self.record["rows"]
            }  # fmt: skip
            if not missing:
                continue
            nets = generations(self.task, small, self.given.steps)
            folder = self._folder / str(len(self.record["rows"]))
            with Parties(folder, protocol, bounds=bounds, **_UNLIMITED) as parties:
                parties.start()
                for name, what in missing.items():
                    number = (parties.status(0).get("number") or 0) + 1
                    parties.deal(number, nets[0][1].program, nets[0][1].parameters)
                    self._keep(f"{setup}: {name}", what(parties, nets))

    def _keep(self, name: str, found: Any) -> None:
        self.record["rows"][name] = {"found": found, "commit": commit()}
        self.record["measured"] = hardware()
        save(self._path, self.record)
        print(f"{name}: {json.dumps(found)[:300]}", flush=True)

    def _rows(
        self, protocol: str, bounds: bool, small: bool
    ) -> dict[str, Callable[[Parties, Nets], Any]]:
        """What is measured with one set-up."""
        made: dict[str, Callable[[Parties, Nets], Any]] = {"cost": self._cost}
        if not (bounds and small):
            return made
        made |= {name: partial(self._views, name) for name in ("curious", "answers", "clients")}
        if protocol == "aby3":
            made |= {"agreement": self._agreement, "copies": partial(self._views, "copies"),
                     "rotation": self._rotation, "killed": lambda p, _: killed(p, self.x),
                     "harmful": partial(self._views, "harmful")}  # fmt: skip
        return made

    def _batch(self, parties: Parties) -> int:
        return min(20, self.given.batch) if parties.heavy else self.given.batch

    def _cost(self, parties: Parties, nets: Nets) -> Any:
        batches, part = (1, 5) if parties.heavy else (self.given.batches, 1)
        singles = max(1, self.given.singles // part)
        return timed(parties, self.x, singles, self._batch(parties), batches)

    def _agreement(self, parties: Parties, nets: Nets) -> Any:
        x = self.x[: self.given.images]
        with torch.no_grad():
            expected = nets[0][0](torch.from_numpy(x)).numpy()
        return agreement(parties, x, expected, self.given.batch)

    def _rotation(self, parties: Parties, nets: Nets) -> Any:
        first = int(parties.status(0)["number"])
        return rotated(parties, nets, first, self.x[:50], self.given.answers)

    def _views(self, name: str, parties: Parties, nets: Nets) -> Any:
        """Red-team rows, as `results.json` has them."""
        given, split, batch = self.given, self.task.splits.test, self._batch(parties)
        n = min(given.viewed // (10 if parties.heavy else 1), len(split))
        x, y = split.x[:n].numpy(), split.y[:n].numpy()
        if name == "curious":
            found = list(views.curious(parties, x, y, batch))
        elif name == "answers":
            found = [views.changed_answers(parties, x[: n // 4], batch)]
        elif name == "clients":
            found = list(views.false_clients(parties, x, given.times))
        elif name == "copies":
            fresh = probe_for(self.task, given.smoke)
            found = list(
                views.through_answers(parties, self.task, nets[0][0], fresh, n, batch, given.steps)
            )
        else:
            with torch.no_grad():
                expected = nets[0][0](torch.from_numpy(x)).numpy()
            found = list(views.harmful(parties, x, expected, given.times))
        return [row.as_json(IDS) for row in found]


def rows(result: Result) -> list[tuple[object, ...]]:
    """The table: cost, agreement, rotation, a dead party."""
    found = {name: row["found"] for name, row in result["rows"].items()}
    made: list[tuple[object, ...]] = []
    for setup in SETUPS:
        if (cost := found.get(f"{setup}: cost")) is None:
            continue
        one, many = cost["single"], cost["batch"]
        goals = ("≤ 0.25 s, ≤ 0.7 MB", "≤ 40 ms") if setup == "aby3" else ("", "")
        made += [
            (f"{setup}: one image", goals[0], f"{one['seconds']:.2f} s, {one['mb']:.2f} MB"),
            (f"{setup}: batch of {many['n']}, an image", goals[1],
             f"{1e3 * many['seconds']:.0f} ms, {many['mb']:.2f} MB"),
        ]  # fmt: skip
    if same := found.get("aby3: agreement"):
        made += [
            ("class as torch's", "≥ 9,990 of 10,000", f"{same['same']:,} of {same['n']:,}"),
            ("largest error of a logit", "", f"{same['largest']:.1e}"),
        ]
    if turn := found.get("aby3: rotation"):
        made += [
            (f"mixed answers under {turn['rotations']} rotations", "0 of 1,000",
             f"{turn['mixed']} of {turn['answers']:,}"),
            ("sharing a generation, under that load", "", f"{turn['share_seconds']:.2f} s"),
        ]  # fmt: skip
    if dead := found.get("aby3: killed"):
        made += [
            ("a party is killed: refusal after", "≤ 5 s", f"{dead['refusal']:.2f} s"),
            ("started anew: first answer after", "", f"{dead['back']:.1f} s"),
        ]
    return made


def attacks(result: Result) -> list[tuple[object, ...]]:
    """The red team's table: who does what, and what it gets."""
    made: list[tuple[object, ...]] = []
    for row in result["rows"].values():
        listed = row["found"] if isinstance(row["found"], list) else []
        made += [line(one) for one in listed]
    return made


def made(folder: Path = RESULTS) -> dict[str, str]:
    """The blocks of docs/confidential.md, by the names of their marks."""
    path = folder / f"{NAME}.json"
    if not path.exists():
        nothing = markdown(TARGETS, [(f"`{path.name}`", NOTHING, "not measured yet")])
        return {MARK: nothing, ATTACKS: nothing}
    result = json.loads(path.read_text("utf-8"))
    commits = sorted({row["commit"] or "unknown" for row in result["rows"].values()})
    told = f"\n\nCommit {', '.join(commits)}."
    return {
        MARK: markdown(TARGETS, rows(result)) + told,
        ATTACKS: markdown(COLUMNS, attacks(result)) + told,
    }


def main() -> None:
    """Measure what is missing and keep it."""
    flags = parser(__doc__)
    flags.add_argument("--data", type=Path, default=Path("../shared/data/mnist"), metavar="FOLDER")
    flags.add_argument("--smoke", action="store_true", help="digits, and the small network for all")
    flags.add_argument("--out", type=Path, default=RESULTS / f"{NAME}.json", metavar="FILE")
    for name, number in SIZES.items():
        flags.add_argument(f"--{name}", type=int, default=number)
    given = flags.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="g2d-") as folder:
        run = Run(given, given.out, Path(folder))
        run.measure()
    print(markdown(TARGETS, rows(run.record)))
    print(markdown(COLUMNS, attacks(run.record)))


if __name__ == "__main__":
    main()
