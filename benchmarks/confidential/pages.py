"""Blocks of docs/confidential.md that tell of one network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown


def block(
    name: str,
    rows: Callable[[dict[str, Any]], Sequence[Sequence[object]]],
    header: Sequence[str] = TARGETS,
    folder: Path = RESULTS,
) -> dict[str, str]:
    """The table of a result by the name of its mark; or that nothing was measured yet."""
    path = folder / f"{name}.json"
    if not path.exists():
        return {name: markdown(TARGETS, [(f"`{path.name}`", NOTHING, "not measured yet")])}
    result = json.loads(path.read_text("utf-8"))
    facts = f"One network, seed {result['arguments']['seed']}; commit {result['commit']}."
    return {name: f"{markdown(header, rows(result))}\n\n{facts}"}
