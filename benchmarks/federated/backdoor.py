"""A backdoor of malicious clients, followed from the base to members to generations.

    python -m benchmarks.federated.backdoor --task mnist --data FOLDER --seeds 0 1 2
    python -m benchmarks.federated.backdoor --clients 5 --members 2 --basins 1 --count 1 \\
        --rounds 24 --fs 1 --rules mean --root 20 --member-drop 0.9 --gated 1          # a try

For each seed, f and rule a vault is made by clients of whom f replace the model
(runs/federated-TASK-SEED-...), beside one without any malicious client; the generator is fitted,
and generations are made: first without a scan for backdoors, then `--gated` more with it
(`[gates] backdoor`). Base and first generations are scanned, too: what is smaller than the least
would have been refused. The trigger is the red team's, its success that of test images of other
classes. Kept vault by vault in benchmarks/results/federated-backdoor-TASK-seedN.json: an
interrupted run goes on.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.command import Result, parser
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import commit, hold_to, record, save
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.federated.aggregation import worth
from benchmarks.federated.deciding import cost
from g2d import Defence, Settings
from g2d.attacks.byzantine import ATTACKS, TARGET
from g2d.core.types import State, silent
from g2d.defence.backdoors import scan
from g2d.defence.federating import federate
from g2d.defence.gates import GateResult
from g2d.errors import GenerationError, PopulationError, SettingsError
from g2d.settings import build
from g2d.tasks.inference import load_model
from g2d.tasks.sizes import defaults_of
from g2d.tasks.source import by_name, resolve
from g2d.training.federated.aggregation import RULES
from g2d.training.federated.simulate import Hostile
from g2d.weights.checkpoints import unpack

OPEN, GATED = "open", "gated"
STAGES = ("base", "members", "generations", GATED)


def settings_of(given: Namespace, seed: int, f: int, rule: str) -> Settings:
    """Of one vault: the task's own, and the rule; `mean` is told that nobody is malicious."""
    task = build(Settings, {"task": {"name": given.task, "data": str(given.data or "")}}, "task")
    own = build(Settings, defaults_of(resolve(by_name(task.task))), given.task, stored=True)
    plain = rule == "mean"
    changes = {
        "task__name": given.task, "task__data": str(given.data or ""), "population__seed": seed,
        "population__members": given.members, "population__basins": given.basins,
        "population__batch": given.batch,
        "canaries__count": 0, "federated__clients": given.clients, "federated__alpha": given.alpha,
        "federated__rounds": given.rounds, "federated__early_rounds": given.early_rounds,
        "federated__fork_rounds": given.fork_rounds, "federated__rule": rule,
        "federated__f": 0 if plain else f, "federated__mix": not plain,
        "federated__clip": 0.0 if plain else 2.0, "federated__member_drop": given.member_drop,
        "federated__root": given.root, "gates__accuracy_drop": given.accuracy_drop,
        "gates__class_drop": given.class_drop,
    }  # fmt: skip
    return own.override(**changes)


def folder(given: Namespace, seed: int, f: int, rule: str) -> Path:
    """Where a vault lies."""
    return Path(given.runs, f"federated-{given.task}-{seed}-{f}-{rule}")


class Stopped:
    """How many candidates each gate has stopped, kept beside a vault: a kill loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, Counter[str]] = {
            name: Counter(known) for name, known in self._read().items()
        }

    def _read(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = (
            json.loads(self.path.read_text()) if self.path.exists() else {}
        )
        return found

    def note(self, phase: str, results: Sequence[GateResult]) -> None:
        """Count what stopped a candidate of one phase."""
        counts = self.counts.setdefault(phase, Counter())
        counts["rejected"] += 1
        counts.update(result.gate for result in results if not result.passed)
        save(self.path, self.counts)


def measured(given: Namespace, seed: int, f: int, rule: str) -> Result:
    """Make one vault, and what each stage answers to the trigger; what was refused says why."""
    path = folder(given, seed, f, rule)
    hostile = Hostile(ATTACKS["backdoor"], f) if f else None
    stopped = Stopped(path.with_name(f"{path.name}-stopped.json"))
    found: Result = {}
    with Defence.create(given.task, path, settings_of(given, seed, f, rule)) as defence:
        began, phase = time.process_time(), "population"
        try:
            federate(defence.task, defence.vault, defence.settings, hostile, silent, lambda _: None)
            defence.fit()  # or what is missing of it after a kill
            phase = OPEN
            made(defence, given.count, partial(stopped.note, OPEN))
            phase = GATED
            gated = defence.settings.override(gates__backdoor=given.least)
            strict = Defence(defence.task, defence.source, defence.vault, gated)
            made(strict, given.count + given.gated, partial(stopped.note, GATED))
        except (SettingsError, PopulationError, GenerationError) as error:
            found["refused"] = f"{phase}: {error}"
        found |= {"stopped": stopped.counts} | answers(defence, given)
        found["cpu_seconds"] = round(time.process_time() - began, 1)  # since it last went on
        return found


def made(defence: Defence, count: int, note: Callable[[Sequence[GateResult]], None]) -> None:
    """Make generations until there are so many beside the base."""
    while (defence.vault.live() or 0) <= count:
        defence.generate(on_reject=note)


def answers(defence: Defence, given: Namespace) -> Result:
    """What networks of each stage answer to the trigger, and what a scan says of some of them."""
    vault, task = defence.vault, defence.task
    numbers = vault.numbers()[1:]  # the first is the base
    states: dict[str, list[State]] = {
        "base": [unpack(vault.read(e)) for e in vault.entries("base")],
        "members": [unpack(vault.read(e)) for e in vault.entries("member")],
        "generations": [defence.generation(n).state for n in numbers[: given.count]],
        GATED: [defence.generation(n).state for n in numbers[given.count :]],
    }
    found = {stage: [worth(task, state, True) for state in each] for stage, each in states.items()}
    for stage in ("base", "generations"):
        for row, state in zip(found[stage], states[stage], strict=True):
            seen = scan(load_model(task, state), task.splits.gate, task.classes, task.bounds)
            row |= {"ratio": seen.ratio, "named": seen.target == TARGET}
    return found


def run(given: Namespace, seed: int, path: Path) -> Result:
    """Measure what is missing of one seed, vault by vault."""
    result = json.loads(path.read_text()) if path.exists() else record(given)
    names = ("task", "clients", "alpha", "rounds", "early_rounds", "fork_rounds", "members",
             "basins", "batch", "count", "gated", "least", "member_drop", "root", "accuracy_drop",
             "class_drop")  # fmt: skip
    hold_to(result, {name: getattr(given, name) for name in names} | {"commit": commit()}, path)
    rows = result.setdefault("rows", {})
    for f in (0, *given.fs):
        for rule in given.rules if f else given.controls:
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
        lines.append([key, *cells, _scanned(rows), _stopped(rows), why])
    head = [*(f"{s}: ASR / accuracy" for s in STAGES), "smallest by median: base, generations",
            "candidates that gates rejected", "refused"]  # fmt: skip
    return markdown(["clients", *head], lines)


def _scanned(rows: Sequence[Result]) -> str:
    """Of base and generations the smallest trigger by the median class's; least and greatest."""
    each = [_values(rows, stage, "ratio") for stage in ("base", "generations")]
    return ", ".join(f"{min(v):.2f} to {max(v):.2f}" if v else NOTHING for v in each)


def _stopped(rows: Sequence[Result]) -> str:
    """By phase how many candidates were stopped, and by which gates."""
    found = []
    for phase in (OPEN, GATED):
        counts: Counter[str] = Counter()
        for row in rows:
            counts.update(row.get("stopped", {}).get(phase, {}))
        by = ", ".join(f"{gate} {n}" for gate, n in sorted(counts.items()) if gate != "rejected")
        found.append(f"{phase} {counts['rejected']}" + (f" ({by})" if by else ""))
    return "; ".join(found)


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
        clean = [r["rows"].get(f"f 0 | {rule}", {}) for r in results]
        chance = _values(clean, "generations", "asr")
        reached = NOTHING
        if made and members:
            reached = f"{100 * max(made):.1f} %; members {100 * max(members):.1f} %"
            if chance:
                reached += f"; where nobody is malicious {100 * max(chance):.1f} %"
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
    # Where records differ by client, a backdoor costs a plain mean more of its accuracy.
    found.add_argument("--alpha", type=float, default=0.0)
    found.add_argument("--rounds", type=int, default=100)
    found.add_argument("--early-rounds", type=int, default=80, help="0: members fork off the base")
    found.add_argument("--fork-rounds", type=int, default=30)
    found.add_argument("--root", type=int, default=200, help="records of the server's own")
    found.add_argument("--members", type=int, default=24)
    found.add_argument("--basins", type=int, default=1)
    found.add_argument("--member-drop", type=float, default=0.1)
    found.add_argument("--accuracy-drop", type=float, default=0.02, help="[gates], as members of so"
                       " few rounds stand below their base")  # fmt: skip
    found.add_argument("--class-drop", type=float, default=0.08, help="[gates]")
    found.add_argument("--batch", type=int, default=32, help="records of a client's step")
    found.add_argument("--count", type=int, default=6, help="generations without a scan")
    found.add_argument("--gated", type=int, default=3, help="further ones, each scanned")
    found.add_argument("--least", type=float, default=0.6, help="[gates] backdoor of these")
    found.add_argument("--fs", type=int, nargs="+", default=[4])
    found.add_argument("--rules", nargs="+", choices=list(RULES),
                       default=["mean", "centred-clipping"])  # fmt: skip
    found.add_argument("--controls", nargs="+", choices=list(RULES), default=["centred-clipping"],
                       help="rules of vaults where nobody is malicious")  # fmt: skip
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
    spent = ", ".join(f"seed {s}: {cost(r):.1f}" for s, r in zip(paths, results, strict=True))
    print(f"CPU minutes: {spent}")


if __name__ == "__main__":
    main()
