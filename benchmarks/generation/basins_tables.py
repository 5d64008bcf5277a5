"""Tables of docs/benchmarks/basins.md, from their JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown, mean, shown
from benchmarks.generation.judge import from_hex
from benchmarks.generation.tables import rows_of
from benchmarks.generation.tables import runs as generations

Runs = Sequence[dict[str, Any]]
_NAMES = {
    "product": "**the product, polished against the basin**",
    "defaults": "the product, its defaults",
    "guided": "guided alone",
    "selected": "best of 256 draws, resting", "conditioned": "conditioned draw",
    "diffusion": "diffusion", "gaussian": "Gaussian of a basin", "soup": "soup of four",
    "interpolation": "between two members", "noise": "member + noise", "member": "member",
    "frozen": "frozen base", "permuted": "frozen base, permuted",
    "retrained on attacks": "retrained on the attacks",
    "retrained, hardened": "retrained on the attacks, hardened as members are",
}  # fmt: skip
_DRAWS = 1000


def decided(task: str = "mnist") -> Runs:
    """Every seed's rows."""
    return [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"basins-{task}-seed*.json"))]


def names_of(runs: Runs) -> list[str]:
    """The rows that a seed has, in the order of the table."""
    wanted = [
        label
        for name in _NAMES
        for label in (name, f"{name}, resting", f"{name}, resting, polished")
    ]
    return [label for label in wanted if any(label in run["rows"] for run in runs)]


def title(label: str) -> str:
    """A row's name as the table has it: of a start, or of a start and what was done to it."""
    if label in _NAMES:
        return _NAMES[label]
    name, _, more = label.partition(", ")
    return f"{_NAMES[name]}, {more}"


def cell(rows: Sequence[dict[str, Any]], key: str) -> str:
    """A column's mean; in brackets that of the same proposals, had the network stayed."""
    text = shown([mean(row[key]) for row in rows])
    stayed = [mean(row[f"{key}_stayed"]) for row in rows if f"{key}_stayed" in row]
    return f"{text} ({shown(stayed)})" if stayed else text


def flips_of(row: dict[str, Any], key: str) -> NDArray[np.float64]:
    """Which images an attack flips, (targets, images), as 0 and 1."""
    digits = len(row[f"{key}_flips"][0])
    return np.array([from_hex(text, 4 * digits) for text in row[f"{key}_flips"]], float)


def apart(runs: Runs, label: str, key: str) -> str:
    """How much more of the images fall than of the product's: mean, 95 % interval.

    A paired bootstrap over images, the same for both rows, and over the targets of each.
    """
    pairs = [(r["rows"][label], r["rows"]["product"]) for r in runs if label in r["rows"]]
    source = np.random.default_rng(0)
    found = []
    for _ in range(_DRAWS):
        each = []
        for row, product in pairs:
            one, other = flips_of(row, key), flips_of(product, key)
            images = source.integers(one.shape[1], size=one.shape[1])
            rest = [m[source.integers(len(m), size=len(m))][:, images].mean() for m in (one, other)]
            each.append(rest[0] - rest[1])
        found.append(100 * mean(each))
    low, high = np.percentile(found, (2.5, 97.5))
    middle = 100 * mean([
        float(flips_of(row, key).mean() - flips_of(product, key).mean()) for row, product in pairs
    ])  # fmt: skip
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def decides(runs: Runs) -> str:
    """Every way of making the next parameters, against the strongest stale attacker."""
    lines = []
    for label in names_of(runs):
        rows = [run["rows"][label] for run in runs if label in run["rows"]]
        owner = [row["owner"] for row in rows if "owner" in row]
        clean = [accuracy for row in rows for accuracy in row["clean"]]
        lines.append([
            title(label), f"{100 * mean(clean):.2f} / {100 * min(clean):.2f}",
            *(cell(rows, key) for key in ("white_box", "last", "worst_16", "joint_16")),
            *(cell(rows, key) for key in ("picked", "basins", "tries")),
            apart(runs, label, "tries") if label != "product" else NOTHING,
            shown(owner), f"{mean([row['cpu_seconds'] for row in rows]):.2f}",
        ])  # fmt: skip
    header = [
        "next parameters", "clean, mean / worst", "white-box", "last", "worst of 16", "joint, 16",
        "one submission, its basin told", "one for each basin", "all tries",
        "all tries, less the first row's",
        "owner, EOT", "CPU s",
    ]  # fmt: skip
    return markdown(header, lines)


def targets(runs: Runs) -> str:
    """What was asked of this table, beside the figure; the worst seed in brackets."""
    rows = [run["rows"]["product"] for run in runs]

    def of(key: str, found: Sequence[dict[str, Any]] = rows) -> list[float]:
        return [100 * mean(row[key]) for row in found]

    def told(values: Sequence[float]) -> str:
        return f"{mean(values):.1f} % ({max(values):.1f})"

    stayed = [a / b for a, b in zip(of("picked"), of("picked_stayed"), strict=True)]
    owner = [100 * row["owner"] for row in rows]
    cost = shares(runs, "product")
    lines = [
        ("one submission, its basin told", "≤ 8 %, a third of had it stayed",
         f"{told(of('picked'))}; of had it stayed {mean(stayed):.2f} ({max(stayed):.2f})"),
        ("one for each basin, counted as one try", "–", told(of("basins"))),
        ("union of all tries", "≤ 10 %", told(of("tries"))),
        ("worst of 16", "≤ 8 %", told(of("worst_16"))),
        ("owner of generator and exposures, EOT", "≤ 13 %", told(owner)),
        *((f"{title(label)}, less the product: all tries", wanted, apart(runs, label, "tries"))
          for label, wanted in (
              ("soup", "≥ 8 points"), ("soup, resting", "≥ 2 points"),
              ("gaussian, resting", "≥ 2 points"), ("defaults", "–"),
              ("soup, resting, polished", "≥ 2 points, or soups are the sampler"))),
        ("clean accuracy less the base's, mean / worst", "−0.08 / −0.31 points", drop(runs)),
        ("CPU time of one rotation, of a retraining on the attacks", "≤ 1/50", cost),
    ]  # fmt: skip
    return markdown(TARGETS, lines)


def drop(runs: Runs) -> str:
    """Clean accuracy of the product's networks against each seed's base, in points."""
    found = [
        100 * (accuracy - run["rows"]["frozen"]["clean"][0])
        for run in runs
        for accuracy in run["rows"]["product"]["clean"]
    ]
    return f"{mean(found):+.2f} / {min(found):+.2f} points".replace("-", "−")


def shares(runs: Runs, label: str) -> str:
    """A row's CPU time as a share of a fresh retraining's in benchmarks.generation, other runs."""
    whole = mean([row["cpu_seconds"] for row in rows_of(generations(), "retrained")])
    found = [run["rows"][label]["cpu_seconds"] / whole for run in runs]
    return f"1/{1 / mean(found):.2g} (1/{1 / max(found):.2g}), on busier machines than that one"


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


def curve() -> str:
    """The strongest stale attacker after few rotations and after many."""
    runs = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("curve-mnist-seed*.json"))]
    points = [point for run in runs for point in run["points"].values()]
    if not points:
        return markdown(TARGETS, [("`curve-mnist-seed*.json`", NOTHING, "not measured yet")])
    names = list(dict.fromkeys(point["row"] for point in points))
    lines = []
    for name in names:
        for read in sorted({point["read"] for point in points if point["row"] == name}):
            rows = [p for p in points if p["row"] == name and p["read"] == read]
            clean = [accuracy for row in rows for accuracy in row["clean"]]
            basins = ", ".join(str(row["submissions"] // 4) for row in rows)
            lines.append([
                name, f"{read:,}", basins, len(rows),
                f"{100 * mean(clean):.2f} / {100 * min(clean):.2f}",
                *(cell(rows, key) for key in ("white_box", "worst_16", "joint_16")),
                *(cell(rows, key) for key in ("picked", "basins", "tries")),
            ])  # fmt: skip
    header = [
        "next parameters", "networks read", "basins among them", "seeds", "clean, mean / worst",
        "white-box", "worst of the last 16", "joint, last 16", "one submission, its basin told",
        "one for each basin", "all tries",
    ]  # fmt: skip
    return markdown(header, lines)


def living() -> str:
    """Chains in which each k-th rotation begins in a basin that was grown since."""
    runs = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("living-mnist-seed*.json"))]
    if not any(run["rows"] for run in runs):
        return markdown(TARGETS, [("`living-mnist-seed*.json`", NOTHING, "not measured yet")])
    lines = []
    for name in dict.fromkeys(name for run in runs for name in run["rows"]):
        rows = [run["rows"][name] for run in runs if name in run["rows"]]
        clean = [accuracy for row in rows for accuracy in row["clean"]]
        fresh = [flag for row in rows for flag in row.get("fresh", ())]
        costs = [row["costs"] for row in rows if "costs" in row]
        lines.append([
            name, f"{sum(fresh)} of {len(fresh)}" if fresh else NOTHING, len(rows),
            f"{100 * mean(clean):.2f} / {100 * min(clean):.2f}",
            *(cell(rows, key) for key in ("white_box", "worst_16", "joint_16")),
            *(cell(rows, key) for key in ("picked", "basins", "tries")),
            f"{mean([c['basin'] for c in costs]):.0f}" if costs else NOTHING,
            f"{mean([row['cpu_seconds'] for row in rows]):.1f}",
        ])  # fmt: skip
    header = [
        "each k-th in a new basin", "judged ones that were", "seeds", "clean, mean / worst",
        "white-box", "worst of the last 16", "joint, last 16", "one submission, its basin told",
        "one for each basin", "all tries", "CPU s of a basin", "CPU s of a rotation",
    ]  # fmt: skip
    return markdown(header, lines)


def made() -> dict[str, str]:
    """Every table by the name of its mark."""
    runs = [run for run in decided() if "product" in run["rows"]]
    found = {"decides": decides(runs), "basin-targets": targets(runs)} if runs else {}
    if decided():
        found |= {"curve": curve(), "living": living()}
    flows = [run for run in decided("nsl-kdd") if "product" in run["rows"]]
    if flows:
        found["decides-nsl-kdd"] = decides(flows)
    return found | ({"renewal": renewal()} if (RESULTS / "renewal").is_dir() else {})
