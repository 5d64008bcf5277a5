"""Tables of docs/benchmarks/sealing.md, from whatever of the JSON is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.sealing import attest, attest_kills, cost, host, kills, swap

Rows = Callable[[dict[str, Any]], Sequence[Sequence[object]]]

TABLES: dict[str, tuple[tuple[str, Rows], ...]] = {
    "sealing-rest": (("sealing-kills.json", kills.rows), ("sealing-cost.json", cost.rows)),
    "sealing-swap": (("sealing_swap.json", swap.rows),),
    "sealing-host": (("sealing-host.json", host.rows),),
    "sealing-attest": (("attest.json", attest.rows), ("attest-kills.json", attest_kills.rows)),
}
"""Files of each table, by the name of its mark."""


def _text(folder: Path, files: Sequence[tuple[str, Rows]]) -> str:
    """One table, and the commits that were measured."""
    lines: list[Sequence[object]] = []
    commits = set()
    for name, rows in files:
        if not (folder / name).exists():
            lines.append((f"`{name}`", NOTHING, "not measured yet"))
            continue
        result = json.loads((folder / name).read_text("utf-8"))
        lines += rows(result)
        commits.add(str(result.get("commit") or "unknown"))
    told = f"\n\nCommit {', '.join(sorted(commits))}." if commits else ""
    return markdown(TARGETS, lines) + told


def made(folder: Path = RESULTS) -> dict[str, str]:
    """Every table by the name of its mark."""
    return {name: _text(folder, files) for name, files in TABLES.items()}
