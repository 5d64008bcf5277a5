"""The table of docs/benchmarks/cluster.md, from the simulation's JSON."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import markdown, plus_minus

HEADER = (
    "how", "away", "all that are there have followed, s", "last stale answer after, s",
    "stale answers a rotation", "refused (503) a rotation",
)  # fmt: skip
DIGITS = {"followed_seconds": 2, "stale_until_seconds": 1, "stale_answers": 0, "refused": 0}


def table(results: dict[str, Any]) -> str:
    """Every case of the simulation."""
    lines = []
    for row in results["cases"]:
        cells = [row["name"], f"{row['away']:.0%}"]
        for key, digits in DIGITS.items():
            mean, _, high = row["found"][key]
            cells.append(f"{mean:,.{digits}f}" + plus_minus(high - mean, digits))
        lines.append(cells)
    return markdown(HEADER, lines)


def made() -> dict[str, str]:
    """Every table by the name of its mark."""
    return {"rollout": table(json.loads((RESULTS / "rollout.json").read_text("utf-8")))}
