"""README's one table: five attackers' questions, and what frozen, rotated and retrained give.

Of each attacker the worst row that was measured is quoted; the pages behind it have them all.
"""

from __future__ import annotations

from typing import Any

from benchmarks.common.tables import markdown, mean
from benchmarks.generation.tables import rows_of
from benchmarks.generation.tables import runs as generations
from benchmarks.redteam.tables import CLOCK, pick, records

HEADER = ("attacker", "plain model", "frozen generation", "rotated", "retrained")
Runs = list[dict[str, Any]]


def share(value: float) -> str:
    """A share in percent without a sign; what is all but certain is a word."""
    return "all" if value > 0.995 else f"{100 * value:.0f}"


def of(runs: Runs, key: str, target: str, *, worst: bool = False) -> str:
    """Mean over seeds of a kind's or family's strongest row; its worst network of any seed."""
    rows = pick(runs, key, target)["rows"]
    found = share(mean([row["value"]["value"] for row in rows]))
    if not worst:
        return found
    networks = [row["worst"]["value"] for row in rows if row["worst"]]
    return f"{found} ({share(max(networks or [row['value']['value'] for row in rows]))})"


def seconds(row: str) -> str:
    """CPU time of one network of benchmarks.generation."""
    return f"{mean([r['cpu_seconds'] for r in rows_of(generations(), row)]):.2g} s"


def queried(runs: Runs, target: str, worst: bool = False) -> str:
    """The stronger of the two query attacks that know the clock, at the same budget."""
    kinds = ["query-square-clock"]
    if any(r["kind"] == "query-square-stale" and r["target"] == target for r in runs[0]["rows"]):
        kinds.append("query-square-stale")
    each = (pick(runs, kind, target)["rows"] for kind in kinds)
    best = [max(one, key=lambda row: row["value"]["value"]) for one in zip(*each, strict=True)]
    values = [row["value"]["value"] for row in best]
    return share(mean(values)) + (f" ({share(max(values))})" if worst else "")


def table(runs: Runs) -> str:
    """Attack success rate in percent, and what a change costs."""
    exact = "white-box-autoattack"
    live = of(runs, exact, "generated")
    lines = [
        ("holds the live weights",
         of(runs, exact, "frozen"), live, of(runs, exact, "generated", worst=True),
         of(runs, exact, "retrained")),
        ("kept twenty old generations",
         of(runs, "stale", "frozen"), live,
         of(runs, "stale", "generated", worst=True), of(runs, "stale", "rival")),
        ("queries, and knows the clock",
         queried(runs, "frozen, no rotation"), queried(runs, "generated, no rotation"),
         queried(runs, f"generated, {CLOCK}", worst=True),
         queried(runs, f"retrained, {CLOCK}")),
        ("owns the generator",
         of(runs, "adaptive", "frozen"), live,
         of(runs, "adaptive", "generated", worst=True), of(runs, "adaptive", "retrained")),
        ("*cost of one change, CPU*", "none", "none",
         seconds("guided + polish"), seconds("retrained")),
    ]  # fmt: skip
    return markdown(HEADER, lines)


def rivals(runs: Runs) -> str:
    """What costs nothing, or is fair, beside the second row."""
    stale = {name: of(runs, "stale", name) for name in ("soup", "noise", "rival")}
    joint = of(runs, "stale-joint", "generated")
    return (
        f"Under the stored attacks of the second row, soups of members, which cost nothing, stand "
        f"at {stale['soup']} and members with noise at {stale['noise']}: most of the effect is the "
        f"population's.\nNetworks retrained *on* the stored attacks met one joint attack alone, "
        f"{stale['rival']}; there rotation stands at {joint}, no better."
    )


def made() -> dict[str, str]:
    """Every block of README by the name of its mark."""
    runs = records()
    return {"headline": table(runs), "rivals": rivals(runs)}
