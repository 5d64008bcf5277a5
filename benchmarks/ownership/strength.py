"""What the mark costs in accuracy by how strongly it is learned: which settings are the cheapest.

    python -m benchmarks.ownership.strength --data ../shared/data/mnist --seeds 10 11

For each seed and way of marking one small population is trained (runs/strength-SEED-WAY), beside
its unmarked twin of the same seed. Told are the members' mean accuracy on the gate split, by which
settings may be chosen, and on the test split; the least hits of any member in any set; and the
least hits after a thief's fine-tuning. Seeds are others than those of `carried`. Kept row by row in
benchmarks/results/ownership-strength.json: an interrupted run goes on.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.command import parser
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import commit, hold_to, record, save
from benchmarks.common.tables import NOTHING, markdown
from g2d import Defence, Settings, load_task
from g2d.attacks import removal
from g2d.cli.progress import show_progress
from g2d.core.engine import SerialEngine
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.protect.watermark import InputForm, WatermarkKey
from g2d.protect.watermark.commitment import commit as commit_to
from g2d.protect.watermark.mark import Mark
from g2d.settings import build
from g2d.tasks.inference import accuracy, load_model
from g2d.tasks.sizes import defaults_of
from g2d.weights.checkpoints import unpack

Row = dict[str, Any]
NONE = "unmarked"
WAYS: Mapping[str, Mapping[str, float]] = {
    NONE: {},
    "four sets of 100": {"sets": 4, "triggers": 100, "reserve": 100, "weight": 1.0},
    "four sets of 64": {"sets": 4, "triggers": 64, "reserve": 64, "weight": 1.0},
    "two sets of 100, weight 0.3": {"sets": 2, "triggers": 100, "reserve": 100, "weight": 0.3},
    "two sets of 64": {"sets": 2, "triggers": 64, "reserve": 64, "weight": 1.0},
    "two sets of 64, weight 0.3": {"sets": 2, "triggers": 64, "reserve": 64, "weight": 0.3},
}
"""Ways of marking: settings of `[watermark]`; of weight 1 where none is named."""


def members_of(given: Namespace, seed: int, way: str) -> tuple[Defence, list[State]]:
    """Train the population of one row, or go on with it; the vault and its members."""
    task = load_task(given.task, given.data)
    settings = build(Settings, defaults_of(task), given.task, stored=True)
    key = given.runs / f"strength-{seed}.key"
    if not key.exists():
        WatermarkKey(seed.to_bytes(32, "big")).write(key)
    settings = settings.override(
        task__name=given.task, task__data=given.data, population__seed=seed, canaries__count=0,
        population__members=given.members, population__basins=1,
        watermark__key=str(key) if way != NONE else "",
        **{f"watermark__{name}": value for name, value in WAYS[way].items()},
    )  # fmt: skip
    folder = given.runs / f"strength-{seed}-{way.replace(' ', '-').replace(',', '')}"
    defence = Defence.create(given.task, folder, settings)
    if way != NONE and not defence.vault.commitment():
        s, form = settings.watermark, InputForm.of(defence.task)
        made = commit_to(
            WatermarkKey.read(key), form, given.task, defence.vault, n=s.triggers, sets=s.sets
        )
        defence.vault.write_commitment(json.dumps(made.record()).encode())
    with show_progress() as progress:
        defence.populate(SerialEngine(), progress)
    return defence, [unpack(defence.vault.read(one)) for one in defence.vault.entries("member")]


def measured(given: Namespace, seed: int, way: str) -> Row:
    """One row."""
    defence, states = members_of(given, seed, way)
    task = defence.task
    models = [load_model(task, state) for state in states]
    row: Row = {
        "n": len(models),
        "gate": [accuracy(model, task.splits.gate) for model in models],
        "test": [accuracy(model, task.splits.test) for model in models],
    }
    mark = Mark.of(defence.settings.watermark, task)
    if mark is None:
        return row
    tuned = [
        removal.fine_tuned(
            task, state, task.splits.train, steps=given.tune_steps, rate=1e-3,
            generator=torch.Generator().manual_seed(seed_of(seed, "thief", index)),
        )
        for index, state in enumerate(states[: given.tuned])
    ]  # fmt: skip
    return row | {
        "least": min(min(mark.hits(model)) for model in models),
        "tuned": [min(mark.hits(load_model(task, state))) for state in tuned],
    }


def rows(found: Mapping[str, Mapping[str, Row]]) -> list[list[object]]:
    """The table: each way beside the unmarked twin of the same seeds, the worst of hits."""
    made: list[list[object]] = []
    for way in WAYS:
        seeds = [seed for seed, own in found.items() if way in own and NONE in own]
        if not seeds or way == NONE:
            continue
        lost = {
            split: [_mean(found[s][NONE][split]) - _mean(found[s][way][split]) for s in seeds]
            for split in ("gate", "test")
        }
        cells = [f"{100 * max(each):.2f} (mean {100 * _mean(each):.2f})" for each in lost.values()]
        least = min(found[s][way]["least"] for s in seeds)
        tuned = [hits for s in seeds for hits in found[s][way]["tuned"]]
        made.append([way, len(seeds), *cells, least, min(tuned) if tuned else NOTHING])
    return made


HEADS = ("way", "seeds", "gate split, points lost", "test split, points lost", "least hits",
         "least hits, fine-tuned at 0.001")  # fmt: skip


def table(folder: Path = RESULTS) -> str:
    """The table of docs/benchmarks/ownership.md."""
    path = folder / "ownership-strength.json"
    result = json.loads(path.read_text("utf-8")) if path.exists() else {"seeds": {}}
    found = rows(result["seeds"])
    if not found:
        return markdown(HEADS, [["not measured yet", *[NOTHING] * (len(HEADS) - 1)]])
    seeds, sizes = ", ".join(result["seeds"]), result["sizes"]
    facts = f"Seeds {seeds}; {sizes['members']} members in one basin; commit {sizes['commit']}."
    return f"{markdown(HEADS, found)}\n\n{facts}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Measure, keep, print."""
    flags = parser(__doc__)
    flags.add_argument("--task", default="mnist")
    flags.add_argument("--data", default="", help="folder of the task's data")
    flags.add_argument("--seeds", type=int, nargs="+", default=[10, 11])
    flags.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    flags.add_argument("--members", type=int, default=6)
    flags.add_argument("--tuned", type=int, default=3, help="members that a thief fine-tunes")
    flags.add_argument("--tune-steps", type=int, default=500)
    flags.add_argument("--runs", type=Path, default=RUNS)
    flags.add_argument("--out", type=Path, default=RESULTS)
    given = flags.parse_args()
    given.data = str(Path(given.data).absolute()) if given.data else ""
    given.runs = given.runs.absolute()
    given.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    path = given.out / "ownership-strength.json"
    result = json.loads(path.read_text("utf-8")) if path.exists() else record(given)
    sizes = {name: getattr(given, name) for name in ("task", "members", "tuned", "tune_steps")}
    hold_to(result, sizes | {"commit": commit()}, path)
    for seed in given.seeds:
        own = result.setdefault("seeds", {}).setdefault(str(seed), {})
        for way in given.ways:
            if way not in own:
                own[way] = measured(given, seed, way)
                save(path, result)
                print(seed, way, json.dumps(own[way])[:200], flush=True)
    print(table(given.out))


if __name__ == "__main__":
    main()
