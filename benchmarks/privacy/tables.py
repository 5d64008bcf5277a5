"""Tables of docs/benchmarks/privacy.md, from whatever of the JSON is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.ownership.tables import Table
from benchmarks.privacy import audit, cost, inside, nslkdd, whole

Result = dict[str, Any]


def _seeds(results: Sequence[Result]) -> list[str]:
    return [str(result["seed"]) for result in results]


def _sizes(results: Sequence[Result]) -> str:
    """What was public, and how the networks were trained."""
    trained = {
        f"base of {s['steps']} steps, forks of {s['fork_steps']}"
        + (" on public data" if s.get("forks") == "public" else "")
        + f", {s['batch']} records a step"
        for s in (result["sizes"] for result in results) if "steps" in s
    }  # fmt: skip
    found = {
        f"{s['public']} records of the task declared public"
        if s["way"] == "held"
        else "scikit-learn's digits as public data"
        for s in (result["sizes"] for result in results)
    }
    return "; ".join([*sorted(trained), *sorted(found)])


TABLES = {
    "privacy-whole": Table("privacy-whole-mnist-seed*.json", whole.rows, _seeds, _sizes),
    "privacy-audit": Table("privacy-audit-mnist-seed*.json", audit.rows, _seeds, _sizes),
    "privacy-inside": Table("privacy-inside-mnist-seed*.json", inside.rows, _seeds, _sizes),
    "privacy-nsl-kdd": Table("privacy-nsl-kdd-seed*.json", nslkdd.rows, _seeds, _sizes),
}


def made(folder: Path = RESULTS) -> dict[str, str]:
    """Every table by the name of its mark."""
    found = {name: table.text(folder) for name, table in TABLES.items()}
    return found | {"privacy-cost": _cost(folder / "privacy-cost.json")}


def _cost(path: Path) -> str:
    """What a private step takes, of the one run that there is."""
    if not path.exists():
        return markdown(TARGETS, [(f"`{path.name}`", NOTHING, "not measured yet")])
    result = json.loads(path.read_text("utf-8"))
    commit = result.get("commit") or "unknown"
    told = f"Task {result['arguments']['task']}; commit {commit}."
    return f"{markdown(TARGETS, cost.rows(result))}\n\n{told}"
