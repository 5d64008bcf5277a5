"""Tables of docs/benchmarks/federated.md, from whatever of the JSON is there."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common.command import Result
from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.federated import (
    aggregation,
    backdoor,
    exchange,
    inversion,
    judging,
    processes,
    scan,
    stale,
)

Results = Sequence[Result]


def _given(results: Results) -> Namespace:
    """The arguments of the first run; what a later one adds has rows that are not told."""
    return Namespace(**results[0]["arguments"])


def _both(table: str, rows: Sequence[Sequence[object]]) -> str:
    return f"{markdown(TARGETS, rows)}\n\n{table}"


def _rules(results: Results) -> str:
    given = aggregation.told(results)
    return _both(aggregation.table(results, given), judging.targets(results, given))


def _backdoor(results: Results) -> str:
    return _both(backdoor.table(results), backdoor.targets(results))


def _stale(results: Results) -> str:
    return _both(stale.table(results), stale.targets(results))


def _inversion(results: Results) -> str:
    return _both(inversion.table(results), inversion.targets(results, _given(results)))


TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "federated-exchange": (
        "federated-exchange-mnist.json",
        lambda results: (
            f"{markdown(TARGETS, exchange.rows(results[0]))}\n\n{exchange.facts(results[0])}"
        ),
    ),
    "federated-inversion": ("federated-inversion-mnist-seed*.json", _inversion),
    "federated-scan": ("federated-scan-mnist.json", lambda r: scan.table(r[0]["rows"])),
    "federated-rules": ("federated-mnist-seed*.json", _rules),
    "federated-unbalanced": (
        "federated-unbalanced-mnist-seed*.json",
        lambda results: aggregation.table(results, aggregation.told(results)),
    ),
    "federated-backdoor": ("federated-backdoor-mnist-seed*.json", _backdoor),
    "federated-stale": ("federated-stale-mnist-seed*.json", _stale),
    "federated-processes": (
        "federated-processes-mnist-seed*.json",
        lambda results: markdown(TARGETS, processes.rows(results)),
    ),
}
"""Each mark: the files that it is made of, and how."""


def made(folder: Path = RESULTS) -> dict[str, str]:
    """Every table by the name of its mark."""
    found = {}
    for name, (pattern, told) in TABLES.items():
        results = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(pattern))]
        if not results:
            found[name] = markdown(TARGETS, [(f"`{pattern}`", NOTHING, "not measured yet")])
            continue
        made_by = ", ".join(sorted({str(one.get("commit") or "unknown") for one in results}))
        facts = "" if name == "federated-exchange" else f"\n\n{_facts(results)}commit {made_by}."
        found[name] = told(results) + facts
    return found


def _facts(results: Results) -> str:
    """The sizes that all rows were measured with."""
    sizes = dict(results[0].get("sizes", {}))
    sizes.pop("commit", None)
    seeds = f"Files: {len(results)}; "
    return seeds + "".join(f"{key.replace('_', ' ')} {value}; " for key, value in sizes.items())
