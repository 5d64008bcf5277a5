"""Tables of what was tried towards benchmarks.robust's missed targets, from the JSON of ways.py."""

from __future__ import annotations

import json
from collections.abc import Sequence

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import markdown, shown
from benchmarks.robust.records import Record, less, of, spread

BASIN = "basin "


def records() -> list[Record]:
    """Every seed's results."""
    return [json.loads(p.read_text()) for p in sorted(RESULTS.glob("robust-ways-seed*.json"))]


def ways(data: Sequence[Record]) -> str:
    """One network a way, on the gate split; students beside their teacher."""
    lines = []
    for name in {name: None for record in data for name in record["rows"]}:
        if name.startswith(BASIN):
            continue
        have = [r for r in data if name in r["rows"]]
        lines.append([
            name, shown(of(have, name, "cpu_seconds"), 0, 1.0), shown(of(have, name, "clean"), 2),
            shown(of(have, name, "autoattack")), spread(less(have, (name,), ("PGD",))),
        ])  # fmt: skip
    header = ["way", "CPU s", "clean", "under the three attacks", "above row PGD, points"]
    return markdown(header, lines)


def basins(data: Sequence[Record]) -> str:
    """What a basin that the attacker has never seen is worth to one member of it; one seed."""
    names = [name for name in data[0]["rows"] if name.startswith(BASIN)]
    lines, kinds = [], ("itself", "its basin is known", "its basin is new")
    # The basins share their images: one row of all their networks, so that they are drawn together.
    together = {
        kind: {"survivors": [s for n in names for s in data[0]["rows"][n][kind]["survivors"]]}
        for kind in kinds
    }
    whole = [{**data[0], "rows": {"members": together}}]
    for kind in kinds:
        lines.append([
            kind, shown([data[0]["rows"][n][kind]["accuracy"] for n in names]),
            spread(less(whole, ("members", kind), ("members", "itself"))),
            spread(less(whole, ("members", kind), ("members", "its basin is known"))),
        ])  # fmt: skip
    header = ["the joint attack", "accuracy left", "above itself, points", "above a known basin"]
    return markdown(header, lines)


def made() -> dict[str, str]:
    """Every table by name."""
    data = records()
    found = {}
    if any(not name.startswith(BASIN) for r in data for name in r["rows"]):
        found["robust-ways"] = ways(data)
    if any(name.startswith(BASIN) for r in data for name in r["rows"]):
        found["robust-basins"] = basins(data)
    return found
