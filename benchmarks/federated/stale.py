"""Do old attacks work on federated generations as rarely as on central ones?

    python -m benchmarks.federated.stale --task mnist --data FOLDER --seeds 0
    python -m benchmarks.federated.stale --members 2 --exposed 2 --targets 1 --examples 50 \\
        --rounds 24 --early-rounds 0 --root 20 --member-drop 0.9                      # a try

Two vaults of one seed, with the same numbers of members and basins: *federated* is made by clients
of whom nobody is malicious (the vault of `benchmarks.federated.backdoor`, gone on with where it is
there), *central* by the task's own recipe from all the clients' records. For each of the last
--targets generations attacks are crafted jointly on the --exposed ones before it, and scored on it,
and on the newest of those ("had it stayed"); white-box is crafted on the generation itself. Of a
vault's figures the mean and the 95 % interval of a single one: all are of the same test images.
Rows are kept in benchmarks/results/federated-stale-TASK-seedN.json, vault by vault.
"""

from __future__ import annotations

import json
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.command import Result
from benchmarks.common.results import commit, hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown
from benchmarks.federated import backdoor
from benchmarks.federated.deciding import cost
from benchmarks.ownership.vaults import grow
from g2d import Defence
from g2d.core.engine import SerialEngine
from g2d.core.types import silent
from g2d.defence.federating import federate
from g2d.redteam.scoring import Rate, Trial, accuracy_rate, pooled
from g2d.tasks.inference import load_model

FEDERATED, CENTRAL = "federated", "central"
COLUMNS = ("joint", "stayed", "white-box")


def opened(given: Namespace, seed: int, kind: str) -> Defence:
    """One vault with its population and generator, made or gone on with."""
    settings = backdoor.settings_of(given, seed, 0, given.rule)
    defence = Defence.create(given.task, folder(given, seed, kind), settings)
    if kind == FEDERATED:
        federate(defence.task, defence.vault, settings, None, silent, lambda _: None)
    else:
        defence.populate(SerialEngine())
    defence.fit()
    return defence


def folder(given: Namespace, seed: int, kind: str) -> Path:
    """Where a vault lies."""
    if kind == FEDERATED:
        return backdoor.folder(given, seed, 0, given.rule)
    return Path(given.runs, f"federated-{given.task}-{seed}-{CENTRAL}")


def measured(given: Namespace, seed: int, kind: str) -> Result:
    """Attacks on one vault's last generations."""
    began, needed = time.process_time(), given.exposed + given.targets
    with opened(given, seed, kind) as defence:
        while len(defence.vault.numbers(1)) < needed:
            grow(defence, seed)
        task, numbers = defence.task, defence.vault.numbers(1)[:needed]
        networks = [load_model(task, defence.generation(n).state) for n in numbers]
    trial = Trial.of(task, given.examples, seed=seed)
    rates: dict[str, list[Rate]] = {name: [] for name in COLUMNS}
    for place in range(given.exposed, needed):
        crafted = trial.craft(networks[place - given.exposed : place], "joint", place)
        own = trial.craft(networks[place], "white-box", place)
        rates["joint"].append(trial.score(networks[place], crafted))
        rates["stayed"].append(trial.score(networks[place - 1], crafted))
        rates["white-box"].append(trial.score(networks[place], own))
    found: Result = {name: [vars(rate) for rate in each] for name, each in rates.items()}
    clean = [accuracy_rate(network, task.splits.test).value for network in networks]
    return found | {"clean": clean, "cpu_seconds": round(time.process_time() - began, 1)}


def run(given: Namespace, seed: int, path: Path) -> Result:
    """Measure what is missing of one seed."""
    result = json.loads(path.read_text()) if path.exists() else record(given)
    names = ("task", "clients", "alpha", "rounds", "early_rounds", "fork_rounds", "members",
             "basins", "batch", "member_drop", "root", "rule", "exposed", "targets", "examples",
             "accuracy_drop", "class_drop",
             )  # fmt: skip
    hold_to(result, {name: getattr(given, name) for name in names} | {"commit": commit()}, path)
    rows = result.setdefault("rows", {})
    for kind in (FEDERATED, CENTRAL):
        if kind not in rows:
            rows[kind] = measured(given, seed, kind)
            save(path, result)
    return result


def rate_of(results: Sequence[Result], kind: str, column: str) -> Rate:
    """The mean over targets and seeds; its interval is of a single target."""
    return pooled([Rate(**one) for result in results for one in result["rows"][kind][column]])


def table(results: Sequence[Result]) -> str:
    """Both vaults, in percent, with intervals."""
    lines = []
    for kind in (FEDERATED, CENTRAL):
        clean = [one for result in results for one in result["rows"][kind]["clean"]]
        accuracy = f"{100 * sum(clean) / len(clean):.2f} (worst {100 * min(clean):.2f})"
        lines.append([kind, accuracy, *(_told(rate_of(results, kind, name)) for name in COLUMNS)])
    head = ["generations", "clean, mean", "stale joint ASR", "had it stayed", "white-box"]
    return markdown(head, lines)


def targets(results: Sequence[Result]) -> list[list[object]]:
    """What was wanted, and what was found."""
    ours, theirs = (rate_of(results, kind, "joint") for kind in (FEDERATED, CENTRAL))
    kept, stayed = (rate_of(results, kind, "stayed") for kind in (FEDERATED, CENTRAL))
    reached = f"{_told(ours)} against {_told(theirs)}"
    shares = f"{_of(ours, kept)} against {_of(theirs, stayed)}"
    return [
        ["stale joint ASR, federated against central, %", "within the interval", reached],
        ["the same, of had it stayed", "–", shares],
    ]


def _told(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _of(rate: Rate, stayed: Rate) -> str:
    return f"{rate.value / stayed.value:.2f}" if stayed.value else "–"


def flags() -> ArgumentParser:
    """What may be asked for: vaults as `backdoor` makes them, and how they are attacked."""
    found = backdoor.flags()
    found.description = (__doc__ or "").split("\n")[0]
    found.add_argument("--rule", default="centred-clipping")
    found.add_argument("--exposed", type=int, default=20, help="generations that an attacker read")
    found.add_argument("--targets", type=int, default=5, help="next ones, each attacked")
    found.add_argument("--examples", type=int, default=500, help="test images that are attacked")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = flags().parse_args(arguments)
    torch.set_num_threads(1)
    os.environ.setdefault("G2D_STATE", str(given.runs / "state"))
    paths = {s: given.out / f"federated-stale-{given.task}-seed{s}.json" for s in given.seeds}
    results = [run(given, seed, path) for seed, path in paths.items()]
    print(markdown(TARGETS, targets(results)))
    print(table(results))
    spent = ", ".join(f"seed {s}: {cost(r):.1f}" for s, r in zip(paths, results, strict=True))
    print(f"CPU minutes: {spent}")


if __name__ == "__main__":
    main()
