"""The table of docs/models.md about Keras, from its JSON; knows no Keras."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.command import Result
from benchmarks.common.measure import interval
from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown

FILE = "interop-keras.json"

MOST = {"translated": 1.1, "adapter": 2.5, "each layer": None}
"""How much of torch's time a way may take; None: it is shown beside the others."""


def ratios(found: dict[str, dict[str, list[float]]], way: str, what: str) -> list[float]:
    """Each turn's time of a way, by torch's of the same turn."""
    pairs = zip(found[way][what], found["torch"][what], strict=True)
    return [one / other for one, other in pairs]


def rows(result: Result) -> Sequence[Sequence[object]]:
    """What was wanted, and what was found."""
    said = {
        "translated": "translated", "adapter": "run by Keras",
        "each layer": "run by Keras, each layer",
    }  # fmt: skip
    table: list[Sequence[object]] = []
    for name, found in result["milliseconds"].items():
        for way, most in MOST.items():
            for what in ("step", "answer") if way in found else ():
                mean, low, high = interval(ratios(found, way, what))
                wanted = f"≤ {most} ×" if most else "shown beside"
                reached = f"{mean:.2f} × ({low:.2f} to {high:.2f})"
                table.append([f"{name}, {said[way]}: {what}", wanted, reached])
    return table


def made(folder: Path = RESULTS) -> dict[str, str]:
    """Every table by the name of its mark."""
    if not (folder / FILE).exists():
        return {"interop-keras": markdown(TARGETS, [(f"`{FILE}`", NOTHING, "not measured yet")])}
    result = json.loads((folder / FILE).read_text("utf-8"))
    given = result["arguments"]
    facts = (
        f"Batches of {given['batch']}, {given['turns']} turns of {given['steps']} steps; "
        f"commit {result['commit']}."
    )
    return {"interop-keras": f"{markdown(TARGETS, rows(result))}\n\n{facts}"}
