"""A backdoor of malicious clients, followed from the base to members to generations.

    python -m benchmarks.federated.backdoor --task mnist --data FOLDER --seeds 0 1 2
    python -m benchmarks.federated.backdoor --clients 5 --members 2 --basins 1 --count 1 \\
        --rounds 24 --fs 1 --rules mean --root 20 --member-drop 0.9                    # a try

For each seed, f and rule a vault is made by clients of whom f replace the model
(runs/federated-TASK-SEED-...), beside one without any malicious client; the generator is fitted,
and generations are made. The trigger is the red team's, its success that of test images of other
classes. Kept vault by vault in benchmarks/results/federated-backdoor-TASK-seedN.json: an
interrupted run goes on.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.command import Result, parser
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import commit, hold_to, record, save
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.federated.aggregation import worth
from g2d import Defence, Settings
from g2d.attacks.byzantine import ATTACKS
from g2d.core.types import silent
from g2d.defence.federating import federate
from g2d.errors import GenerationError, PopulationError, SettingsError
from g2d.settings import build
from g2d.tasks.sizes import defaults_of
from g2d.tasks.source import by_name, resolve
from g2d.training.federated.aggregation import RULES
from g2d.training.federated.simulate import Hostile
from g2d.weights.checkpoints import unpack

STAGES = ("base", "members", "generations")


def settings_of(given: Namespace, seed: int, f: int, rule: str) -> Settings:
    """Of one vault: the task's own, and the rule; `mean` is told that nobody is malicious."""
    task = build(Settings, {"task": {"name": given.task, "data": str(given.data or "")}}, "task")
    own = build(Settings, defaults_of(resolve(by_name(task.task))), given.task, stored=True)
    plain = rule == "mean"
    changes = {
        "task__name": given.task, "task__data": str(given.data or ""), "population__seed": seed,
        "population__members": given.members, "population__basins": given.basins,
        "canaries__count": 0, "federated__clients": given.clients, "federated__alpha": given.alpha,
        "federated__rounds": given.rounds, "federated__rule": rule,
        "federated__f": 0 if plain else f, "federated__mix": not plain,
        "federated__clip": 0.0 if plain else 2.0, "federated__member_drop": given.member_drop,
        "federated__root": given.root,
    }  # fmt: skip
    return own.override(**changes)


def measured(given: Namespace, seed: int, f: int, rule: str) -> Result:
    """Make one vault, and what each stage answers to the trigger; what was refused says why."""
    folder = given.runs / f"federated-{given.task}-{seed}-{f}-{rule}"
    hostile = Hostile(ATTACKS["backdoor"], f) if f else None
    found: Result = {}
    with Defence.create(given.task, folder, settings_of(given, seed, f, rule)) as defence:
        try:
            federate(defence.task, defence.vault, defence.settings, hostile, silent, lambda _: None)
            if defence.vault.entry("generator") is None:  # else it was interrupted after
                defence.fit()
            while (defence.vault.live() or 0) <= given.count:
                defence.generate()
        except (SettingsError, PopulationError, GenerationError) as error:
            found["refused"] = str(error)
        vault, numbers = defence.vault, defence.vault.numbers()[1:]  # the first is the base
        states = {
            "base": [unpack(vault.read(e)) for e in vault.entries("base")],
            "members": [unpack(vault.read(e)) for e in vault.entries("member")],
            "generations": [defence.generation(number).state for number in numbers],
        }
        for stage, each in states.items():
            found[stage] = [worth(defence.task, state, True) for state in each]
    return found


def run(given: Namespace, seed: int, path: Path) -> Result:
    """Measure what is missing of one seed, vault by vault."""
    result = json.loads(path.read_text()) if path.exists() else record(given)
    names = ("task", "clients", "alpha", "rounds", "members", "basins", "count", "member_drop",
             "root")  # fmt: skip
    hold_to(result, {name: getattr(given, name) for name in names} | {"commit": commit()}, path)
    rows = result.setdefault("rows", {})
    for f in (0, *given.fs):
        for rule in given.rules if f else given.controls or given.rules:
            key = f"f {f} | {rule}"
            if key not in rows:
                print(f"seed {seed}: {key}", file=sys.stderr)
                rows[key] = measured(given, seed, f, rule)
                save(path, result)
    return result


def table(results: Sequence[Result]) -> str:
    """Success of the trigger and accuracy by stage, in percent: means, and the worst network."""
    keys = list(dict.fromkeys(key for result in results for key in result["rows"]))
    lines = []
    for key in keys:
        rows = [result["rows"][key] for result in results if key in result["rows"]]
        cells = [f"{_told(rows, s, 'asr')} / {_told(rows, s, 'accuracy')}" for s in STAGES]
        why = next((row["refused"] for row in rows if "refused" in row), "")
        lines.append([key, *cells, why])
    return markdown(["clients", *(f"{s}: ASR / accuracy" for s in STAGES), "refused"], lines)


def _values(rows: Sequence[Result], stage: str, what: str) -> list[float]:
    return [one[what] for row in rows for one in row.get(stage, ()) if what in one]


def _told(rows: Sequence[Result], stage: str, what: str) -> str:
    values = _values(rows, stage, what)
    if not values:
        return NOTHING
    worst = max(values) if what == "asr" else min(values)
    return f"{100 * statistics.mean(values):.1f} (worst {100 * worst:.1f})"


def targets(results: Sequence[Result]) -> list[list[object]]:
    """What was wanted, and what was found, of every rule but the plain mean."""
    found: list[list[object]] = []
    for key in dict.fromkeys(key for result in results for key in result["rows"]):
        f, _, rule = key.removeprefix("f ").partition(" | ")
        if f == "0" or rule == "mean":
            continue
        rows = [result["rows"][key] for result in results if key in result["rows"]]
        made, members = (_values(rows, stage, "asr") for stage in ("generations", "members"))
        reached = NOTHING
        if made and members:
            reached = f"{100 * max(made):.1f} %; members {100 * max(members):.1f} %"
        what = f"backdoor ASR of generations, {rule}, f = {f}"
        found.append([what, "≤ 1 %, never above the members'", reached])
    return found


def flags() -> ArgumentParser:
    """What may be asked for."""
    found = parser(__doc__)
    found.add_argument("--task", default="digits")
    found.add_argument("--data", type=Path)
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--clients", type=int, default=20)
    found.add_argument("--alpha", type=float, default=0.5)
    found.add_argument("--rounds", type=int, default=60)
    found.add_argument("--root", type=int, default=200, help="records of the server's own")
    found.add_argument("--members", type=int, default=24)
    found.add_argument("--basins", type=int, default=2)
    found.add_argument("--member-drop", type=float, default=0.1)
    found.add_argument("--count", type=int, default=10, help="generations of each vault")
    found.add_argument("--fs", type=int, nargs="+", default=[4, 8])
    found.add_argument("--rules", nargs="+", choices=list(RULES),
                       default=["mean", "centred-clipping", "multi-krum", "fltrust"])  # fmt: skip
    found.add_argument("--controls", nargs="+", choices=list(RULES), default=[],
                       help="rules of vaults where nobody is malicious; else --rules")  # fmt: skip
    found.add_argument("--runs", type=Path, default=RUNS)
    found.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = flags().parse_args(arguments)
    torch.set_num_threads(1)
    os.environ.setdefault("G2D_STATE", str(given.runs / "state"))  # marks of vaults lie with them
    paths = {s: given.out / f"federated-backdoor-{given.task}-seed{s}.json" for s in given.seeds}
    results = [run(given, seed, path) for seed, path in paths.items()]
    print(table(results))
    print(markdown(TARGETS, targets(results)))


if __name__ == "__main__":
    main()
