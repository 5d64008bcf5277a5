"""Bit flips on networks in the secret layout that is served, and what that layout costs.

    python -m benchmarks.ownership.layout --data ../shared/data/mnist --seeds 0 1 2

Reads `runs/mnist-<seed>` (make them with `python -m benchmarks.generation` first; or name those of
`carried`: `--vault runs/ownership-{seed}-plain`) and writes
benchmarks/results/layout-<task>-seed<seed>.json. Rows are the red team's own:
flips found on the file of generation t, on another replica of t and on t + 1 as they are served,
beside a plain layout and random flips; and, of older ways to keep weights, units in a secret order
alone. Then the time of a load and of an answer, in turns with a plain layout, in one thread. Two
CPU minutes a seed; a seed whose file is there is left alone.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.command import Result
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown, ranged, shown
from benchmarks.ownership.vaults import of_seed
from g2d import Defence
from g2d.defence.generations import Generation
from g2d.redteam.context import AttackContext, Chain, Network, RunSpec
from g2d.redteam.threats.bitflips.threat import THREAT
from g2d.rotation.snapshot import Snapshot

KINDS = ("layout-", "random", "kept-reordered")
LAST = 6  # generations
ROWS = (
    ("bit flips found on t, on t+1 in the secret layout: points lost", "≤ 0.5", "layout-next"),
    ("the same in a plain layout", "", "layout-next-plain"),
    ("bit flips found on t, on another replica of t in the secret layout", "≤ 0.5",
     "layout-replica"),
    ("the same in a plain layout", "", "layout-replica-plain"),
    ("as many of the same bits, at random weights", "control", "layout-random"),
    ("units in a secret order alone, as many flips as ruin t, on t+1", "", "kept-reordered"),
)  # fmt: skip


def flips(defence: Defence, seed: int, quick: bool) -> list[dict[str, Any]]:
    """The red team's rows of its cases on the newest generations."""
    numbers = defence.vault.exposures(LAST)
    files = [defence.vault.generation_file(number) for number in numbers]
    digests = [defence.vault.generation(number).files["weights"] for number in numbers]
    networks = tuple(
        Network(str(file), digest, str(number))
        for file, digest, number in zip(files, digests, numbers, strict=True)
    )
    spec = RunSpec(
        defence.task, str(defence.vault.path), defence.settings,
        {"generated": Chain("generated", networks)}, n=min(1000, len(defence.task.splits.test)),
        eps=defence.task.eps, seed=seed, quick=quick,
    )  # fmt: skip
    context, rows = AttackContext(spec), []
    for case in THREAT.plan(spec):
        if case.name in ("layout", "random", "hardened"):
            rows += [row.as_json(THREAT.ids) for row in THREAT.run(case, context)]
    return [row for row in rows if row["kind"].removeprefix("bit-flips-").startswith(KINDS)]


def times(generation: Generation, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a load, and of an answer to 1 and to 64 inputs; medians, in turns."""
    taken: dict[str, dict[str, list[float]]] = {}
    x = generation.task.splits.test.x

    def clock(layout: str, what: str, work: Any) -> Any:
        began = time.perf_counter()
        found = work()
        elapsed = 1e3 * (time.perf_counter() - began)
        taken.setdefault(layout, {}).setdefault(what, []).append(elapsed)
        return found

    for _ in range(repeats):
        for layout in ("plain", "secret"):
            live: Snapshot = clock(layout, "load", lambda name=layout: generation.snapshot(name))
            live.predict(x[:64])
            for what, inputs in (("answer to 1", x[:1]), ("answer to 64", x[:64])):
                for _ in range(10):
                    clock(layout, what, lambda to=inputs, of=live: of.predict(to))
    return {
        layout: {what: statistics.median(values) for what, values in found.items()}
        for layout, found in taken.items()
    }


def measure(vault: Path, data: str, seed: int, quick: bool, arguments: Any) -> Result:
    """One seed's file."""
    with Defence.open(vault, write=False, data=data) as defence:
        began = time.process_time()
        rows = flips(defence, seed, quick)
        seconds = time.process_time() - began
        spent = times(defence.generation(), 3 if quick else 30)
        layout = defence.generation().snapshot().layout
    return record(arguments) | {
        "seed": seed, "vault": vault.name, "layout": layout, "cpu_seconds": seconds, "rows": rows,
        "milliseconds": spent,
    }  # fmt: skip


def known(path: Path, quick: bool, vault: Path) -> Result:
    """A file that is there: of this vault, and no try where none was asked for."""
    found: Result = json.loads(path.read_text("utf-8"))
    sizes = {"quick": found["arguments"]["quick"], "vault": found["vault"]}
    hold_to({"sizes": sizes}, {"quick": quick, "vault": vault.name}, path)
    return found


def lines(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """Rows of the table of targets: mean and range over seeds."""

    def of(kind: str) -> str:
        found = [
            row["value"]["value"] if row["value"] else None
            for result in results
            for row in result["rows"]
            if row["kind"] == f"bit-flips-{kind}"
        ]
        return ranged(found, 2)

    def cost(what: str) -> str:
        both = (
            [result["milliseconds"][layout][what] for result in results]
            for layout in ("secret", "plain")
        )
        return " against ".join(shown(values, 2, 1.0) for values in both)

    told = [(what, target, of(kind)) for what, target, kind in ROWS]
    told += [
        (f"{what}, ms: secret layout against plain", "", cost(what))
        for what in ("load", "answer to 1", "answer to 64")
    ]
    return told


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="", help="folder of MNIST's idx files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--vault", type=Path, help="in place of runs/mnist-{seed}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="a try: few flips, few loads")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in given.seeds:
        vault = of_seed(given.vault or RUNS / "mnist-{seed}", seed)
        with Defence.open(vault, write=False, data=given.data) as defence:
            path = given.out / f"layout-{defence.task.name}-seed{seed}.json"
        if not path.exists():
            save(path, measure(vault, given.data, seed, given.quick, given))
        results.append(known(path, given.quick, vault))
    print(markdown(TARGETS, lines(results)))


if __name__ == "__main__":
    main()
