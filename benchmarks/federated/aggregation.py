"""Rules against attacks of malicious clients: split x f x attack x rule, beside the controls.

    python -m benchmarks.federated.aggregation --task mnist --data FOLDER --seeds 0 1 2
    python -m benchmarks.federated.aggregation --targets ...    # rows that targets are judged by
    python -m benchmarks.federated.aggregation --decide ...     # the fewest that decide them
    python -m benchmarks.federated.aggregation --rounds 2 --attacks sign-flip --rules mean  # a try

A base is trained for each row, by the product's own messages. Every attack knows the rule and all
honest updates. `mean` is averaging without any defence (no clipping, no mixing, no balanced loss);
of all others clients balance their loss, norms are clipped and nearest neighbours mixed first.
Controls: the server's own records alone, the mean of clients that train alone, and averaging
without malicious clients. Accuracy is of the test split; a backdoor also has its success there.
Kept row by row in benchmarks/results/federated-TASK-seedN.json: an interrupted run goes on, and one
with other splits, f, attacks or rules adds to it. `--decide` chooses a rule for each
target on a seed of its own first (federated-choice-TASK.json), then measures that rule and the
default alone (`deciding`). `--no-balance`: the ablation, in files of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.command import Result, parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import commit, hold_to, record, save
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.federated.deciding import (
    CHOSEN_ON,
    HONEST,
    WANTED,
    Case,
    chosen,
    cost,
    deciding,
    key_of,
)
from benchmarks.federated.judging import (
    ALONE,
    DEFAULT,
    LOCAL,
    NONE,
    name_of,
    over_seeds,
    targets,
)
from g2d import Settings
from g2d.attacks.byzantine import ATTACKS, TARGET
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.errors import PopulationError, SettingsError
from g2d.settings import TaskSettings, build
from g2d.settings.federated import FederatedSettings
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.tasks.source import by_name, resolve
from g2d.tasks.task import Task
from g2d.training.federated.aggregation import RULES
from g2d.training.federated.simulate import Hostile, Simulation, trained_alone

ALPHAS, FS = (0.0, 0.5, 0.1), (0, 4, 8)
ANYWHERE = "even"  # how alpha = 0, the even split, is told


def settings_of(given: Namespace, seed: int, alpha: float, f: int, rule: str) -> Settings:
    """Of one row; plain averaging is told that nobody is malicious, whatever is true."""
    plain = rule == "mean"
    federated = {
        "clients": given.clients, "rule": rule, "alpha": alpha, "rounds": given.rounds,
        "local_steps": given.local_steps, "local_rate": given.local_rate, "root": given.root,
        "f": 0 if plain else f, "mix": not plain, "clip": 0.0 if plain else 2.0,
        "balance": given.balance and not plain,
    }  # fmt: skip
    tables = {"population": {"seed": seed, "batch": given.batch}, "federated": federated}
    return build(Settings, tables, "benchmark")


def cases(given: Namespace) -> Iterator[Case]:
    """Every row: alpha, f, attack, rule; without malicious clients there is one attack, none."""
    for alpha in given.alphas:
        for f in given.fs:
            for attack in given.attacks if f else [NONE]:
                for rule in given.rules:
                    if not given.targets or is_wanted(alpha, f, rule):
                        yield alpha, f, attack, rule


def is_wanted(alpha: float, f: int, rule: str) -> bool:
    """Whether a target is judged by a row; all others cost as much, and no two share a training."""
    return (alpha, f) in WANTED or (f == 0 and rule == "mean" and alpha in HONEST)


def measured(task: Task, given: Namespace, seed: int, case: Case) -> Result:
    """Train one base, and what it is worth; a rule that refuses so many says so."""
    alpha, f, attack, rule = case
    settings, began = settings_of(given, seed, alpha, f, rule), time.process_time()
    hostile = Hostile(ATTACKS[attack], f) if f else None
    like = task.model(seed_of(seed, "base", 0)).state_dict()
    sim = Simulation(task, settings, like, hostile=hostile)
    try:
        server = sim.train("base-0", sim.networks.vector(like), settings.federated.rounds)
    except (SettingsError, PopulationError) as error:
        return {"refused": str(error)}
    found = worth(task, sim.networks.state(server.vector, like), attack == "backdoor")
    skipped = sum(bool(closed.skipped) for closed in server.closed)
    return found | {
        "cpu_seconds": round(time.process_time() - began, 2), "skipped": skipped,
        "refused_answers": dict(server.refusals.counts),
    }  # fmt: skip


def worth(task: Task, state: State, backdoor: bool = False) -> Result:
    """Accuracy on the gate and the test split, and how often the trigger succeeds on the latter."""
    model, test = load_model(task, state), task.splits.test
    found: Result = {"accuracy": accuracy(model, test), "gate": accuracy(model, task.splits.gate)}
    if backdoor and task.bounds is not None:
        from g2d.attacks.poisoning import trigger

        others = test.x[test.y != TARGET]
        sent = predict(model, trigger(others, task.bounds)).argmax(1) == TARGET
        found["asr"] = float(sent.double().mean())
    return found


def controls(task: Task, given: Namespace, seed: int, alpha: float) -> dict[str, Result]:
    """The server's own records alone, and clients that train alone: their mean, and the best."""
    settings, began = settings_of(given, seed, alpha, 0, "mean"), time.process_time()
    sim = Simulation(task, settings, task.model(seed_of(seed, "base", 0)).state_dict())
    steps = given.rounds * given.local_steps
    own = trained_alone(task, sim.root, settings, steps, seed_of(seed, "alone"))
    found = {ALONE: worth(task, own) | {"cpu_seconds": round(time.process_time() - began, 2)}}
    each, began = [], time.process_time()
    for identity, client in list(sim.clients.items())[: given.locals]:
        if len(client.records):
            state = trained_alone(task, client.records, settings, steps, seed_of(seed, identity))
            each.append(accuracy(load_model(task, state), task.splits.test))
    if each:
        found[LOCAL] = {
            "accuracy": statistics.mean(each), "best": max(each), "clients": len(each),
            "cpu_seconds": round(time.process_time() - began, 2),
        }  # fmt: skip
    return found


def opened(given: Namespace, path: Path) -> Result:
    """What there is of one seed, if it is of the same sizes and the same commit."""
    result: Result = json.loads(path.read_text()) if path.exists() else record(given)
    sizes = {
        name: getattr(given, name)
        for name in ("task", "clients", "rounds", "local_steps", "local_rate", "batch", "root")
    }
    hold_to(result, sizes | {"commit": commit()}, path)
    result.setdefault("rows", {})
    result.setdefault("controls", {})
    return result


def choose(task: Task, given: Namespace, path: Path) -> dict[str, str]:
    """The rule of each target's cell, chosen on a seed of its own; its rows are kept, too.

    A choice that is complete is taken whatever commit it was made at: no table has its rows.
    """
    if path.exists():
        known: dict[str, str] = json.loads(path.read_text()).get("chosen", {})
        if all(key_of(cell) in known for cell in WANTED):
            return known
    result = opened(given, path)
    found, choice = result["rows"], result.setdefault("chosen", {})

    def measure(case: Case) -> Result:
        name = name_of(*case)
        if name not in found:
            print(f"choosing, seed {CHOSEN_ON}: {name}", file=sys.stderr)
            found[name] = measured(task, given, CHOSEN_ON, case)
            save(path, result)
        row: Result = found[name]
        return row

    robust = sorted((rule for rule in given.rules if rule != "mean"), key=DEFAULT.__ne__)
    for cell in WANTED:
        if key_of(cell) not in choice and cell[0] in given.alphas:
            best = chosen(cell, robust, given.attacks, measure)
            choice[key_of(cell)] = DEFAULT if best is None else best[0]
            save(path, result)
    print(f"rules chosen in {cost(result):.1f} CPU minutes: {choice}")
    return dict(choice)


def run(
    task: Task, given: Namespace, seed: int, path: Path, choice: dict[str, str] | None = None
) -> Result:
    """Measure what is missing of one seed, row by row; with a choice, what decides targets."""
    result = opened(given, path)
    found, control = result["rows"], result["controls"]
    if choice is not None and result.setdefault("chosen", choice) != choice:
        raise SystemExit(f"{path} was measured with the rules {result['chosen']}, not {choice}")
    for alpha in given.alphas:
        if f"{alpha:g}" not in control:
            control[f"{alpha:g}"] = controls(task, given, seed, alpha)
            save(path, result)
    wanted = cases(given)
    if choice is not None:
        wanted = deciding(choice, DEFAULT, given.attacks, given.alphas)
    due = [case for case in wanted if name_of(*case) not in found]
    for done, case in enumerate(due):
        print(f"seed {seed}: {done} of {len(due)}, {name_of(*case)}", file=sys.stderr)
        found[name_of(*case)] = measured(task, given, seed, case)
        save(path, result)
    return result


# --- tables --------------------------------------------------------------------------------------


def table(results: Sequence[Result], given: Namespace) -> str:
    """Accuracy in percent by split, f and attack, of every rule; with the controls."""
    lines = []
    for alpha in given.alphas:
        split = f"{alpha:g}" if alpha else ANYWHERE
        for f in given.fs:
            for attack in given.attacks if f else [NONE]:
                cells = [_cell(results, (alpha, f, attack, rule)) for rule in given.rules]
                if any(cell != NOTHING for cell in cells):
                    lines.append([split, f, attack, *cells])
        for name in (ALONE, LOCAL):
            kept = [r["controls"].get(f"{alpha:g}", {}).get(name) for r in results]
            values = [one["accuracy"] for one in kept if one]
            lines.append([split, NOTHING, name, _mean(values), *[""] * (len(given.rules) - 1)])
    return markdown(["alpha", "f", "attack", *given.rules], lines)


def told(results: Sequence[Result]) -> Namespace:
    """What rows there are of, whichever runs added them: the axes of the table."""
    keys = {key for result in results for key in result["rows"]}
    alphas, fs, attacks, rules = (
        {key.split(" | ")[place] for key in keys} for place in range(4)
    )  # fmt: skip
    splits = {f"alpha {alpha:g}": alpha for alpha in (*ALPHAS, *_others(alphas))}
    return Namespace(
        alphas=[alpha for name, alpha in splits.items() if name in alphas],
        fs=sorted(int(name.removeprefix("f ")) for name in fs),
        attacks=[name for name in ATTACKS if name in attacks],
        rules=[name for name in RULES if name in rules],
    )


def _others(names: Iterable[str]) -> list[float]:
    known = (float(name.removeprefix("alpha ")) for name in names)
    return sorted(alpha for alpha in known if alpha not in ALPHAS)


def _cell(results: Sequence[Result], case: Case) -> str:
    rows = [result["rows"].get(name_of(*case), {}) for result in results]
    if rows and all("refused" in row for row in rows):
        return "refused"
    text = _mean(over_seeds(results, case))
    rates = [row["asr"] for row in rows if "asr" in row]
    return f"{text} (ASR {_mean(rates)})" if rates else text


def _mean(values: Iterable[float]) -> str:
    known = list(values)
    return f"{100 * statistics.mean(known):.1f}" if known else NOTHING


def flags() -> ArgumentParser:
    """What may be asked for."""
    found = parser(__doc__)
    found.add_argument("--task", default="digits")
    found.add_argument("--data", type=Path)
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--clients", type=int, default=20)
    found.add_argument("--rounds", type=int, default=FederatedSettings().rounds)
    found.add_argument("--local-steps", type=int, default=10)
    found.add_argument("--local-rate", type=float, default=0.2)
    found.add_argument("--batch", type=int, default=32)
    found.add_argument("--root", type=int, default=200)
    found.add_argument("--no-balance", dest="balance", action="store_false",
                       help="clients do not balance their loss: a table of its own")  # fmt: skip
    found.add_argument("--locals", type=int, default=20, help="clients that also train alone")
    found.add_argument("--alphas", type=float, nargs="+", default=list(ALPHAS))
    found.add_argument("--fs", type=int, nargs="+", default=list(FS))
    found.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    found.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    found.add_argument("--targets", action="store_true", help="only what targets are judged by")
    found.add_argument("--decide", action="store_true",
                       help=f"choose rules on seed {CHOSEN_ON}, then the fewest rows")  # fmt: skip
    found.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = flags().parse_args(arguments)
    torch.set_num_threads(1)
    named: dict[str, Any] = {"name": given.task, "data": str(given.data or "")}
    task = resolve(by_name(TaskSettings(**named)))
    kind = "federated" if given.balance else "federated-unbalanced"
    paths = {s: given.out / f"{kind}-{given.task}-seed{s}.json" for s in given.seeds}
    choice = None
    if given.decide:
        if CHOSEN_ON in given.seeds:
            raise SystemExit(f"--decide chooses rules on seed {CHOSEN_ON}: measure on others")
        choice = choose(task, given, given.out / f"federated-choice-{given.task}.json")
    results = [run(task, given, seed, path, choice) for seed, path in paths.items()]
    print(table(results, given))
    print(markdown(TARGETS, targets(results, given)))
    minutes = ", ".join(f"seed {s}: {cost(r):.1f}" for s, r in zip(paths, results, strict=True))
    print(f"CPU minutes: {minutes}")


if __name__ == "__main__":
    main()
