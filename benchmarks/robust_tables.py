"""Tables of docs/benchmarks.md's section on robust members, from robust.py's JSON of every seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import interval

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]
ROWS = (
    "standard", "standard, clamped", "FGSM at eps = 1 alone, ordinary CNN", "FGSM-RS, unguarded",
    "FGSM-RS", "PGD", "TRADES", "repelled", "adversarial", "both", "generated",
    "student, adversarial", "student, RSLAD", "student, teacher of defensive distillation",
    "student, defensive distillation",
)  # fmt: skip


def records() -> list[Record]:
    """Every seed's results."""
    return [json.loads(p.read_text()) for p in sorted(RESULTS.glob("robust-mnist-seed*.json"))]


def table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *lines))


def shown(values: Sequence[float | None], digits: int = 1, scale: float = 100.0) -> str:
    """`mean ± half width` over seeds; two seeds give their range, none a dash."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean, _, high = interval(known)
    text = f"{scale * mean:.{digits}f}"
    if len(known) == 2:
        low, high = min(known), max(known)
        return f"{text} ({scale * low:.{digits}f}–{scale * high:.{digits}f})"
    return text if len(known) == 1 else f"{text} ± {scale * (high - mean):.{digits}f}"


def of(data: Sequence[Record], row: str, *path: str) -> list[float | None]:
    """One number of a row, for every seed; None where it was not measured."""
    found = []
    for record in data:
        value: Any = record["rows"].get(row)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        found.append(value)
    return found


def recipes(data: Sequence[Record]) -> str:
    """Every recipe beside the others."""
    lines = []
    for name in ROWS:
        if not any(name in record["rows"] for record in data):
            continue
        networks = of(data, name, "networks")[0]
        worst = shown(of(data, name, "autoattack_worst")) if networks and networks > 1 else "–"
        parameters = next(v for v in of(data, name, "parameters") if v)
        lines.append([
            name, shown(of(data, name, "clean"), 2), shown(of(data, name, "autoattack")), worst,
            shown(of(data, name, "stale_joint", "accuracy")),
            shown(of(data, name, "adaptive", "accuracy")), f"{parameters:,}",
            shown(of(data, name, "cpu_seconds"), 1, 1.0),
        ])  # fmt: skip
    header = ["recipe", "clean", "AutoAttack, mean", "worst network", "stale, joint",
              "adaptive, EOT", "parameters", "CPU s a network"]  # fmt: skip
    return table(header, lines)


def less(data: Sequence[Record], one: Callable[[Record], float | None]) -> list[float | None]:
    """A number that is worked out of each seed's rows, where they are there."""
    found: list[float | None] = []
    for record in data:
        try:
            found.append(one(record))
        except KeyError:
            found.append(None)
    return found


def targets(data: Sequence[Record]) -> str:
    """The issue's targets beside what was reached."""

    def rows(record: Record, name: str) -> Any:
        return record["rows"][name]

    def drop(record: Record, worst: bool) -> float:
        made, members = rows(record, "generated"), rows(record, "both")
        return members["autoattack"] - made["autoattack_worst" if worst else "autoattack"]

    def lead(record: Record) -> float:
        made = rows(record, "generated")
        return made["stale_joint"]["accuracy"] - made["autoattack"]

    def share(record: Record) -> float:
        return rows(record, "PGD")["cpu_seconds"] / rows(record, "generated")["cpu_seconds"]

    def kept(record: Record) -> float:
        return rows(record, "student, RSLAD")["autoattack"] / rows(record, "PGD")["autoattack"]

    def eot(record: Record) -> float:
        return rows(record, "generated")["adaptive"]["accuracy"] - rows(record, "PGD")["autoattack"]

    def theirs(record: Record) -> float:
        made, members = rows(record, "generated"), rows(record, "both")
        return made["adaptive"]["accuracy"] - members["autoattack"]

    worst_flip = "flips, PGD, in ranges"
    lines = [
        ["clean accuracy after adversarial training", "≥ 98.8 %", "the blog: 52.6 %",
         f"PGD {shown(of(data, 'PGD', 'clean'), 2)}, TRADES "
         f"{shown(of(data, 'TRADES', 'clean'), 2)}"],
        ["AutoAttack, one trained model", "≥ 93 %", "TRADES 92.81, Madry 88.50, Wong 82.93",
         f"PGD {shown(of(data, 'PGD', 'autoattack'))}, TRADES "
         f"{shown(of(data, 'TRADES', 'autoattack'))}"],
        ["AutoAttack, generated, below the members: mean of the last 5 / worst of 10 (of 30)",
         "≤ 0.5 / 1.5 points", "–",
         f"{shown(less(data, lambda r: drop(r, False)))} / "
         f"{shown(less(data, lambda r: drop(r, True)))}"],
        ["stale joint-20 accuracy of generated", "≥ 96 %", "Madry challenge: 93.5",
         shown(of(data, "generated", "stale_joint", "accuracy"))],
        ["… above its white-box accuracy", "≥ 2 points", "Madry challenge: 5.5",
         shown(less(data, lead))],
        ["adaptive EOT accuracy, above the trained model's AutoAttack", "≥ 0 points", "–",
         shown(less(data, eot))],
        ["… above the members' AutoAttack", "–", "–", shown(less(data, theirs))],
        ["one robust generation, CPU time of training one robust model", "≤ 1/20", "–",
         f"1/{shown(less(data, share), 1, 1.0)}"],
        ["robust student at 1/10 of the parameters, share of the teacher's AutoAttack",
         "≥ 95 %", "–", shown(less(data, kept))],
        ["training the robust base, minutes on one core", "≤ 20 on two", "100k × 50 × PGD-40",
         shown(less(data, lambda r: r["trainings"]["PGD"]["wall_seconds"] / 60), 1, 1.0)],
        ["parameters whose worst bit flip costs > 10 points", "≤ 1 % in ranges", "40–50 %",
         f"{shown(of(data, worst_flip, 'fragile', 'value'), 2)} in ranges, "
         f"{shown(of(data, 'flips, PGD', 'fragile', 'value'))} without"],
    ]  # fmt: skip
    return table(["what", "target", "reference", "reached"], lines)


def compute(data: Sequence[Record]) -> str:
    """What more training buys: the curve of the base's recipe."""
    lines = []
    for part in (8, 4, 2, 1):
        name = "PGD" if part == 1 else f"PGD, 1/{part} of the steps"
        values = of(data, name, "autoattack")
        if any(v is not None for v in values):
            lines.append([
                f"1/{part}" if part > 1 else "all", shown(of(data, name, "cpu_seconds"), 0, 1.0),
                shown(of(data, name, "clean"), 2), shown(values),
            ])  # fmt: skip
    return table(["steps", "CPU s", "clean", "AutoAttack"], lines)


def flips(data: Sequence[Record]) -> str:
    """The census of single bit flips of float32 weights."""
    lines = []
    for name in ("standard", "standard, clamped", "PGD"):
        for guarded in (False, True):
            key = f"flips, {name}{', in ranges' if guarded else ''}"
            if any(key in record["rows"] for record in data):
                lines.append([
                    name, "yes" if guarded else "no", shown(of(data, key, "fragile", "value"), 2),
                    shown(of(data, key, "relative", "value"), 2),
                    shown(of(data, key, "worst_toll")),
                ])  # fmt: skip
    header = ["network", "weights held in their layer's range", "parameters with a flip that costs "
              "> 10 points, %", "> 10 % of the accuracy (Hong et al.), %",
              "worst flip found, points"]  # fmt: skip
    return table(header, lines)


def machine(data: Sequence[Record]) -> str:
    """Where and when."""
    return "\n".join(
        f"- seed {record['seed']}: "
        + ", ".join(f"{key}: {value}" for key, value in record["hardware"].items())
        for record in data
    )


def made() -> dict[str, str]:
    """Every table by name."""
    data = records()
    if not data:
        return {}
    clean = [v for v in of(data, "PGD", "clean") if v is not None]
    found = {
        "robust-recipes": recipes(data),
        "robust-targets": targets(data),
        "robust-compute": compute(data),
        "robust-flips": flips(data),
        "robust-machine": machine(data),
    }
    if clean and all("generated" in record["rows"] for record in data):
        found["robust"] = line(data, statistics.mean(clean))
    return found


def line(data: Sequence[Record], clean: float) -> str:
    """README's line."""
    made, whole = "generated", shown
    return (
        f"- **Robust and rotating.** With adversarial training as a recipe (MNIST, ε = 0.3, "
        f"{len(data)} seeds) a base keeps {100 * clean:.2f} % clean accuracy and "
        f"{whole(of(data, 'PGD', 'autoattack'))} % under AutoAttack. Generations made from such a "
        f"population keep {whole(of(data, made, 'autoattack'))} % (worst "
        f"{whole(of(data, made, 'autoattack_worst'))} %), "
        f"{whole(of(data, made, 'stale_joint', 'accuracy'))} % against a joint attack on twenty "
        f"exposed ones and {whole(of(data, made, 'adaptive', 'accuracy'))} % against whoever owns "
        f"the generator; each costs {whole(of(data, made, 'cpu_seconds'), 0, 1.0)} CPU s "
        f"([tables](docs/benchmarks.md#robust-members))."
    )
