"""Tables of docs/benchmarks/basins.md, from their JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, markdown, shown
from g2d.report.matrix import chain_of

Runs = Sequence[dict[str, Any]]
_NAMES = {
    "generated": "the product", "unrotated": "its live generation, had it stayed",
    "soup": "soup of four members", "noise": "member + noise", "retrained": "retrained",
    "frozen": "frozen base", "permuted": "frozen base, permuted",
}  # fmt: skip


def attacked() -> Runs:
    """Every seed's basin-aware rows."""
    return [json.loads(p.read_text()) for p in sorted(RESULTS.glob("basins-mnist-seed*.json"))]


def rows_of(runs: Runs, kind: str, chain: str) -> list[dict[str, Any]]:
    """One row of every seed that has it."""
    found = [row for run in runs for row in run["rows"]]
    return [r for r in found if (r["kind"], chain_of(r)) == (kind, chain) and r["value"]]


def cell(runs: Runs, kind: str, chain: str) -> str:
    """ASR, and in brackets that of the same proposals on the network they were crafted on."""
    rows = rows_of(runs, kind, chain)
    if not rows:
        return NOTHING
    stayed = [row["extra"]["stayed"]["value"] for row in rows]
    return f"{shown([row['value']['value'] for row in rows])} ({shown(stayed)})"


def basin_aware(runs: Runs) -> str:
    """The strongest stale attacker against each chain."""
    kinds = ("basin-fingerprint", "basin-union", "basin-tries")
    lines = []
    for chain, name in _NAMES.items():
        known = rows_of(runs, kinds[0], chain)
        if not known:
            continue
        first = known[0]["extra"]
        worst = [row["worst"]["value"] for row in known]
        lines.append([
            name, f"{first['exposed']} in {first['basins']}",
            shown([row["clean_accuracy"]["value"] for row in known]),
            *(cell(runs, kind, chain) for kind in kinds), shown(worst), known[0]["scored"],
        ])  # fmt: skip
    header = [
        "next parameters", "exposed, in basins", "clean", "one submission", "one for each basin",
        "many tries", "worst of one submission", "scored on",
    ]  # fmt: skip
    return markdown(header, lines)


def curve(runs: Runs) -> str:
    """The best stale attack as rotations go on: one submission, its basin told by fingerprint."""
    chains = ("generated", "soup", "retrained")
    points: dict[int, dict[str, list[str]]] = {}
    for chain in chains:
        for row in rows_of(runs, "basin-rotations", chain):
            for point in row["extra"]["curve"]:
                text = f"{100 * point['value']:.1f} ({100 * point['stayed']:.1f})"
                points.setdefault(point["rotations"], {}).setdefault(chain, []).append(text)
    lines = [
        [count, *(" · ".join(found.get(chain, [NOTHING])) for chain in chains)]
        for count, found in sorted(points.items())
    ]
    return markdown(["rotations so far", *(_NAMES[chain] for chain in chains)], lines)


def renewal() -> str:
    """What networks grown from a basin's soup reach, way by way."""
    paths = sorted((RESULTS / "renewal").glob("mnist-seed*.json"))
    rows = [json.loads(path.read_text())["row"] for path in paths]
    keys = ("clean", "white_box", "joint", "joint_stayed", "worst", "tries", "midpoint")
    lines = [
        [row["name"], *(f"{100 * row[key]:.1f}" for key in keys), f"{row['cpu_seconds']:.1f}"]
        for row in sorted(rows, key=lambda row: (row["share"], row["steps"]))
    ]
    header = [
        "begins with", "clean", "white-box", "joint on all before", "had it stayed",
        "worst single", "all tries", "best midpoint accuracy", "CPU s",
    ]  # fmt: skip
    return markdown(header, lines)


def made() -> dict[str, str]:
    """Every table by the name of its mark."""
    runs = attacked()
    found = {"basin-aware": basin_aware(runs), "basin-curve": curve(runs)} if runs else {}
    return found | ({"renewal": renewal()} if (RESULTS / "renewal").is_dir() else {})
