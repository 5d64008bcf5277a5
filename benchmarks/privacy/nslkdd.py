"""Private members on a table: NSL-KDD at epsilon 1, beside the same vault without privacy.

    python -m benchmarks.privacy.nslkdd --data ../shared/data/nslkdd --seeds 0 1 2

For each seed two vaults are made (runs/privacy-nsl-kdd-SEED-...): a private one whose population
keeps within --epsilon, its inputs standardised by the flows that are declared public (`flows`), and
the task's own without privacy; each makes --count generations. Accuracy and detection are those of
the official test flows, which nothing is trained on or chosen by, and of `nslkdd.held_out`, by
which settings were chosen. `public`: the private vault's network, trained without noise on the
public flows alone. Kept seed by seed, vault by vault, in
benchmarks/results/privacy-nsl-kdd-seedN.json: an interrupted run goes on.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from benchmarks.common.command import Result
from benchmarks.common.places import RESULTS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown, ranged, shown
from benchmarks.privacy.flows import public_mlp
from benchmarks.privacy.vaults import SIZES, People, calibrated, flags, made, settings_of
from g2d import Settings
from g2d.protect.privacy import accounting
from g2d.protect.privacy.ledger import PrivacyLedger
from g2d.redteam.scoring import accuracy_rate
from g2d.settings import PopulationSettings, build
from g2d.tasks.inference import predict
from g2d.tasks.labelled import read_labelled
from g2d.tasks.nslkdd import held_out
from g2d.tasks.sizes import defaults_of
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import Batches, clean_step, train

PRIVATE, PLAIN, PUBLIC = "private", "plain", "public"
OWN = ("count", "epsilon", "rate", "clip", "standardised")
HELD_OUT = "accuracy on held-out training flows"
ALONE = 600
"""Steps on public flows alone."""


def people_of(given: Namespace, kind: str) -> People:
    """The people, and the network that is to learn from them."""
    people = People.of(given)
    if kind == PLAIN or not given.standardised:
        return people
    return replace(people, task=replace(people.task, factory=public_mlp(public_of(people).x)))


def public_of(people: People) -> Split:
    """The flows that are declared public."""
    return read_labelled(people.public, people.task)


def settings(people: People, given: Namespace, seed: int, kind: str) -> Settings:
    """Of the private vault, or the task's own."""
    task = people.task
    if kind == PRIVATE:
        made = settings_of(people, given, seed, given.epsilon)
        made = made.override(privacy__rate=given.rate, privacy__clip=given.clip)
        return calibrated(made, given.noise_ratio)
    own = build(Settings, defaults_of(task), task.name, stored=True)
    return own.override(
        task__name=task.name, task__eps=task.eps, population__seed=seed, canaries__count=0
    )


def judged(task: Task, given: Namespace, models: Sequence[nn.Module]) -> Result:
    """Accuracy and the task's metrics of each network on the test flows, and on those held out."""
    held, found = held_out(given.data), []
    for model in models:
        logits = predict(model, task.splits.test.x)
        told = {n: float(metric(logits, task.splits.test.y)) for n, metric in task.metrics.items()}
        told[HELD_OUT] = accuracy_rate(model, held).value
        found.append({"accuracy": accuracy_rate(model, task.splits.test).value, **told})
    return {name: [one[name] for one in found] for name in found[0]}


def measured(people: People, given: Namespace, seed: int, kind: str) -> Result:
    """One vault: its generations on the test flows, and what was spent."""
    path = Path(given.runs, f"privacy-nsl-kdd-{seed}-{kind}")
    wanted = Settings() if path.exists() else settings(people, given, seed, kind)
    with made(people, path, wanted, given.count, seed) as defence:
        numbers = defence.vault.numbers()
        models = [defence.generation(number).model() for number in numbers]
        found = {"base": judged(people.task, given, models[:1]),
                 "generations": judged(people.task, given, models[1:])}  # fmt: skip
        if kind == PRIVATE:
            p = defence.settings.privacy
            spent = PrivacyLedger(defence.vault, defence.settings).spendings()
            found |= {"epsilon": accounting.total(spent, p.delta), "noise": p.noise}
        return found


def alone(people: People, given: Namespace, seed: int) -> Result:
    """One network that has learned the public flows and nobody else's, without noise."""
    task, public = people.task, public_of(people)
    model = task.model(seed)
    batches = Batches(task, public, 128, torch.Generator().manual_seed(seed))
    train(model, clean_step(task, batches), steps=ALONE, rate=PopulationSettings().rate)
    return {"generations": judged(task, given, [model])}


def measure(given: Namespace, seed: int) -> Result:
    """One seed: what is missing."""
    path = given.out / f"privacy-nsl-kdd-seed{seed}.json"
    found: Result = {"seed": seed, "vaults": {}}
    if path.exists():
        found = json.loads(path.read_text("utf-8"))
    hold_to(found, {name: getattr(given, name) for name in (*SIZES, *OWN)}, path)
    for kind in (PRIVATE, PLAIN, PUBLIC):
        if kind in found["vaults"]:
            continue
        began, people = time.process_time(), people_of(given, kind)
        row = alone(people, given, seed) if kind == PUBLIC else measured(people, given, seed, kind)
        found["vaults"][kind] = row
        found["vaults"][kind]["cpu_seconds"] = round(time.process_time() - began, 1)
        found["run"] = record(given)
        save(path, found)
        print(f"seed {seed}, {kind}: measured", flush=True)
    return found


def rows(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """The table, over seeds that have both vaults."""
    both = [r["vaults"] for r in results if {PRIVATE, PLAIN} <= r["vaults"].keys()]
    if not both:
        return []

    def mean(kind: str, name: str) -> list[float]:
        return [statistics.mean(one[kind]["generations"][name]) for one in both]

    spent = ranged([one[PRIVATE]["epsilon"] for one in both], 2, 1.0)
    lines = [("epsilon of everything, delta 1e-5", "<= 1", spent)]
    for name in both[0][PLAIN]["generations"]:
        ours, other = mean(PRIVATE, name), mean(PLAIN, name)
        less = shown([b - a for a, b in zip(ours, other, strict=True)], 2)
        wanted = "<= 1" if name == "accuracy" else ""
        lines.append((f"{name}, private generations, %", "", shown(ours, 2)))
        lines.append((f"{name}, without privacy, %", "", shown(other, 2)))
        lines.append((f"{name} below that without privacy, points", wanted, less))
    for name in ("accuracy", HELD_OUT):
        if all(PUBLIC in one and name in one[PUBLIC]["generations"] for one in both):
            text = shown(mean(PUBLIC, name), 2)
            lines.append((f"{name}, the public flows alone, %", "", text))
    return lines


def parser() -> ArgumentParser:
    """The flags."""
    made = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags(made)
    # A thousand public flows judge, on which the bound alone asks for half a point: at the task's
    # own limits (0.75 and 1.5 points) of one seed in two no candidate passed.
    made.set_defaults(
        task="nsl-kdd", batch=512, steps=600, public=2000, members=24, accuracy_drop=0.02,
        class_drop=0.04,
    )  # fmt: skip
    made.add_argument("--epsilon", type=float, default=1.0)
    made.add_argument("--count", type=int, default=20, help="generations of each vault")
    made.add_argument("--rate", type=float, default=0.02, help="[privacy] rate")
    made.add_argument("--clip", type=float, default=2.0, help="[privacy] clip")
    made.add_argument(
        "--standardised", action=BooleanOptionalAction, default=True,
        help="standardise the private vault's inputs by public flows",
    )  # fmt: skip
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return made


def main() -> None:
    """Measure what is missing, and print the table."""
    given = parser().parse_args()
    torch.set_num_threads(1)
    print(markdown(TARGETS, rows([measure(given, seed) for seed in given.seeds])))


if __name__ == "__main__":
    main()
