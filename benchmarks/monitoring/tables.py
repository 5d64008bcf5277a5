"""Tables of docs/benchmarks/monitoring.md, from whatever of the JSON is there.

That of serving policies stands in docs/threats/policies.md: see `policies_tables`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.monitoring import alarms, detection, drift, latency, refresh, soak
from benchmarks.ownership.tables import Table

Result = dict[str, Any]
Rows = Callable[[Result], Sequence[Sequence[object]]]


def _seeds(results: Sequence[Result]) -> list[str]:
    """Seeds that any of the files holds."""
    return sorted({seed for result in results for seed in result["seeds"]}, key=int)


def merged(results: Sequence[Result]) -> Result:
    """The seeds of several files, which two processes wrote side by side, as one.

    Raises:
        SystemExit: they were measured by other flags.
    """
    sizes = [result["sizes"] for result in results]
    if any(one != sizes[0] for one in sizes):
        raise SystemExit(f"results of other flags are not one table: {sizes}")
    return {"sizes": sizes[0], "seeds": {k: v for one in results for k, v in one["seeds"].items()}}


def _of_tasks(results: Sequence[Result]) -> list[list[str]]:
    """What was refreshed, task by task."""
    tasks = dict.fromkeys(str(result["sizes"]["task"]) for result in results)
    return [
        [f"{task}: {what}", *rest]
        for task in tasks
        for what, *rest in refresh.rows(merged([r for r in results if r["sizes"]["task"] == task]))
    ]


TABLES = {
    "monitoring-drift": Table("drift*.json", lambda results: drift.rows(merged(results)), _seeds),
    "monitoring-detection": Table(
        "detection*.json", lambda results: detection.rows(merged(results)), _seeds
    ),
    "monitoring-refresh": Table("refresh-*.json", _of_tasks, _seeds),
}
RUNS: dict[str, tuple[str, Rows]] = {
    "monitoring-alarms": ("alarms.json", alarms.rows),
    "monitoring-latency": ("latency.json", latency.rows),
    "monitoring-day": ("day.json", soak.rows),
}
"""Tables of one run, which has no seeds: the file, and what makes its rows."""


def made(folder: Path = RESULTS) -> dict[str, str]:
    """Every table by the name of its mark."""
    found = {name: table.text(folder) for name, table in TABLES.items()}
    return found | {name: _one(folder / file, rows) for name, (file, rows) in RUNS.items()}


def _one(path: Path, rows: Rows) -> str:
    """The table of a run, or that there was none yet."""
    result = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if not (lines := rows(result) if result else ()):
        return markdown(TARGETS, [(f"`{path.name}`", NOTHING, "not measured yet")])
    about = result.get("record", result)
    return f"{markdown(TARGETS, lines)}\n\nCommit {about.get('commit') or 'unknown'}."
