"""Distillation: what is left of our mark, and of two rivals that are made to outlive it.

    python -m benchmarks.ownership.rivals --data FOLDER [--seeds 0 1 2]

Reads the marked vaults of `carried` (runs/ownership-{seed}-marked; `--vault` names others). Each of
the newest generations is served by DAWN; a thief distils the service, by probabilities and by
labels, with as many steps as a base has, and once four times as long. Networks from fresh seeds are
the control. Of each copy both owners ask 100 queries at most. Then one network is trained with
entangled watermarks and one without, and both are distilled by labels. Copies are measured one by
one and kept in benchmarks/results/ownership-rivals-TASK-seedN.json: an interrupted run goes on at
the next.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown, ranged
from benchmarks.ownership.dawn import Dawn, worth
from benchmarks.ownership.entangled import measured
from benchmarks.ownership.vaults import of_seed
from g2d import Defence
from g2d.attacks import removal
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.protect.watermark import p_value
from g2d.protect.watermark.chance import LIKELY
from g2d.protect.watermark.mark import Mark
from g2d.redteam.controls import retraining
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.training.jobs import run_job
from g2d.weights.checkpoints import unpack

Row = dict[str, Any]
QUERIES = 100  # that an owner may ask
FILE, SOFT, HARD, LONG, FRESH = "the file itself", "soft", "hard", "hard, longer", "independent"
LONGER = 4  # times the steps of a base: wrong labels of single queries are learned late
WORDS = {
    SOFT: "distilled by probabilities", HARD: "distilled by labels",
    LONG: f"distilled by labels, {LONGER} times as long",
    FILE: "the file, stolen without a question", FRESH: "control: trained by somebody else",
}  # fmt: skip


class Rivals:
    """One seed's vault, the service over each of its newest generations, and what copies carry."""

    def __init__(self, given: Namespace, seed: int) -> None:
        self.given, self.seed = given, seed
        self.defence = Defence.open(of_seed(given.vault, seed), write=False, data=given.data)
        self.task, settings = self.defence.task, self.defence.settings
        mark = Mark.of(settings.watermark, self.task, self.defence.vault.path)
        if mark is None:
            raise SystemExit(f"{self.defence.vault.path} has no watermark: make it by `carried`")
        self.mark, self.steps, self.rate = (
            mark, given.steps or settings.population.base_steps, settings.population.rate / 3,
        )  # fmt: skip
        self.path = given.out / f"ownership-rivals-{self.task.name}-seed{seed}.json"
        self.record: dict[str, Any] = {"seed": seed, "rows": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text("utf-8"))
        sizes = {"share": given.share, "steps": self.steps}
        hold_to(self.record, sizes, self.path)
        vault = self.defence.vault.path.name
        if (known := self.record.setdefault("vault", vault)) != vault:
            raise SystemExit(f"{self.path} holds copies from {known}: give another --out")

    @cached_property
    def numbers(self) -> list[int]:
        """Of the stolen generations, the newest first."""
        return self.defence.vault.numbers(1)[-self.given.stolen :][::-1]

    def service(self, number: int) -> Dawn:
        """A generation as DAWN serves it; each has the same key."""
        key = self.seed.to_bytes(32, "big")
        return Dawn(
            self._model(self._state(number)), key, self.task.classes, self.given.share,
            self.task.bounds,
        )  # fmt: skip

    def _state(self, number: int) -> State:
        return dict(self.defence.generation(number).state)

    def _model(self, state: State) -> nn.Module:
        return load_model(self.task, state)

    def suspects(self) -> Iterator[tuple[str, int, State | None]]:
        """What is asked: how it was come by, of which generation; None: what is there already."""
        for number in self.numbers:
            for way in (FILE, HARD, SOFT, LONG):
                known = f"{way} {number}" in self.record["rows"]
                yield way, number, None if known else self._taken(way, number)
        for index in range(self.given.independent):
            known = f"{FRESH} {index}" in self.record["rows"]
            yield FRESH, index, None if known else self._fresh(index)

    def _taken(self, way: str, number: int) -> State:
        if way == FILE:
            return self._state(number)
        steps = self.steps * (LONGER if way == LONG else 1)
        return removal.distilled(
            self.task, self.service(number), self.task.splits.train.x, soft=way == SOFT,
            steps=steps, rate=self.rate, seed=seed_of(self.seed, "rivals", way, number),
        )  # fmt: skip

    def _fresh(self, index: int) -> State:
        job = retraining(self.defence.source, self.defence.settings, index)
        return unpack(run_job(job).weights)

    def judged(self, state: State, number: int) -> Row:
        """Both owners' hits and p of a suspect, and its accuracy."""
        model, service, x = self._model(state), self.service(number), self.task.splits.train.x
        ours = self.mark.hits(model)[0]
        at, labels = service.marked(x)
        answers = predict(model, x[at]).argmax(1)
        asked = min(QUERIES, len(at))
        dawn = int((answers == labels)[:asked].sum())
        test, n = self.task.splits.test, self.mark.each
        told = predict(service, test.x).argmax(1)
        return {
            "ours": ours, "queries": n,
            "ours_p": p_value(ours, n, self.task.classes, max(1, self.mark.sets - 1)),
            "dawn": dawn, "dawn_queries": asked, "dawn_p": worth(dawn, asked, self.task.classes),
            "dawn_all": int((answers == labels).sum()), "marked_queries": len(at),
            "accuracy": accuracy(model, test),
            "served": accuracy(self._model(self._state(number)), test),
            "served_by_dawn": float((told == test.y).double().mean()),
        }  # fmt: skip

    def measure(self) -> None:
        """Measure every suspect that is not there, and keep each as soon as it is."""
        for way, number, state in self.suspects():
            if state is None:
                continue
            of = number if way != FRESH else self.numbers[0]
            row = {"way": way, **self.judged(state, of)}
            self.record["rows"][f"{way} {number}"] = row
            self.record["measured"] = record(self.given)
            save(self.path, self.record)
            print(self.seed, way, number, json.dumps(row), flush=True)
        if self.given.entangled and "entangled" not in self.record:
            rate = self.defence.settings.population.rate
            self.record["entangled"] = measured(self.task, self.steps, rate, self.seed)
            save(self.path, self.record)


def lines(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What, by whom, what is left; over all seeds."""
    rows = [row for result in found for row in result["rows"].values()]
    made = []
    for way, words in WORDS.items():
        own = [row for row in rows if row["way"] == way]
        if not own:
            continue
        for name, key in (("our mark", "ours"), ("DAWN's", "dawn")):
            proven = sum(row[f"{key}_p"] < LIKELY for row in own)
            asked = own[0]["queries" if key == "ours" else "dawn_queries"]
            hits = ranged([row[key] for row in own], 0, 1.0)
            text = f"{proven} of {len(own)} at p < 2^-64; hits of {asked}: {hits}"
            made.append((f"{words}: {name}", "printed", text))
        if way in (SOFT, HARD, LONG):
            text = ranged([row["accuracy"] for row in own], 2)
            made.append((f"{words}: accuracy of the copy, %", "printed", text))
    if rows:
        lost = [row["served"] - row["served_by_dawn"] for row in rows if row["way"] != FRESH]
        made.append(("what DAWN costs the service, points of accuracy", "printed", ranged(lost, 2)))
    return [*made, *_entangled([result["entangled"] for result in found if "entangled" in result])]


def _entangled(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Networks with entangled watermarks, and their copies, beside plain ones."""
    if not found:
        return []
    asked = found[0]["queries"]

    def both(key: str, digits: int, scale: float) -> str:
        own, plain = ([one[name][key] for one in found] for name in ("entangled", "plain"))
        return f"{ranged(own, digits, scale)}; without it {ranged(plain, digits, scale)}"

    return [
        (f"entangled watermarks: hits of {asked}", "printed", both("hits", 0, 1.0)),
        (
            f"entangled watermarks, distilled by labels: hits of {asked}",
            "printed",
            both("copy_hits", 0, 1.0),
        ),
        ("entangled watermarks: accuracy, %", "printed", both("accuracy", 2, 100.0)),
    ]


def main() -> None:
    """Measure, keep, print."""
    flags = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--data", default="")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--vault", type=Path, default=RUNS / "ownership-{seed}-marked")
    flags.add_argument("--stolen", type=int, default=3, help="generations that are distilled")
    flags.add_argument("--independent", type=int, default=2, help="networks from fresh seeds")
    flags.add_argument("--share", type=float, default=0.005, help="of queries that DAWN marks")
    flags.add_argument("--steps", type=int, default=0, help="of a distillation; 0: as a base")
    flags.add_argument("--entangled", type=int, default=1, help="0: leave that rival out")
    flags.add_argument("--out", type=Path, default=RESULTS)
    given = flags.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in given.seeds:
        rivals = Rivals(given, seed)
        rivals.measure()
        found.append(rivals.record)
    print(markdown(TARGETS, lines(found)))


if __name__ == "__main__":
    main()
