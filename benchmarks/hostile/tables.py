"""The table of docs/security.md: what was asked of a trusted service, and what was reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.hostile import audit, fuzz, rollback, silence
from benchmarks.serving import access

Result = dict[str, Any]
SCRIPTS: dict[str, Callable[[Result], list[list[str]]]] = {
    "silence": silence.rows, "rollback": rollback.rows, "audit": audit.rows,
    "fuzz-authenticated": fuzz.rows, "access": access.rows,
}  # fmt: skip


def made() -> dict[str, str]:
    """Every script's rows; what has not been measured says so."""
    lines: list[list[str]] = []
    for name, rows in SCRIPTS.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            lines += rows(json.loads(path.read_text("utf-8")))
        else:
            lines.append([f"`{name}`", NOTHING, "not measured yet"])
    return {"security": markdown(TARGETS, lines)}
