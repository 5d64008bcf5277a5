"""README's one table: what attackers win against a soup, a kept generation, rotation, retraining.

Of each attacker the worst row that was measured is quoted; the pages behind it have them all.
"""

from __future__ import annotations

from typing import Any

from benchmarks.common.tables import markdown, mean
from benchmarks.generation.tables import rows_of
from benchmarks.generation.tables import runs as generations
from benchmarks.redteam.tables import CLOCK, pick, records
from g2d.report.matrix import chain_of, every_of

HEADER = ("attacker", "plain model", "frozen generation", "soup", "rotated", "retrained")
Runs = list[dict[str, Any]]


def share(value: float) -> str:
    """A share in percent without a sign; what is all but certain is a word."""
    return "all" if value > 0.995 else f"{100 * value:.0f}"


def of(runs: Runs, key: str, chain: str, *, worst: bool = False) -> str:
    """Mean over seeds of a kind's or family's strongest row; its worst network of any seed."""
    rows = pick(runs, key, chain)["rows"]
    found = share(mean([row["value"]["value"] for row in rows]))
    if not worst:
        return found
    networks = [row["worst"]["value"] for row in rows if row["worst"]]
    return f"{found} ({share(max(networks or [row['value']['value'] for row in rows]))})"


def seconds(row: str) -> str:
    """CPU time of one network of benchmarks.generation."""
    return f"{mean([r['cpu_seconds'] for r in rows_of(generations(), row)]):.2g} s"


def queried(runs: Runs, chain: str, every: int | None = None, *, worst: bool = False) -> str:
    """The stronger of the two query attacks that know the clock, at the same budget."""
    kinds = ["query-square-clock"]
    clocked = ("query-square-stale", chain, every)
    if any((r["kind"], chain_of(r), every_of(r)) == clocked for r in runs[0]["rows"]):
        kinds.append("query-square-stale")
    each = (pick(runs, kind, chain, every=every)["rows"] for kind in kinds)
    best = [max(one, key=lambda row: row["value"]["value"]) for one in zip(*each, strict=True)]
    values = [row["value"]["value"] for row in best]
    return share(mean(values)) + (f" ({share(max(values))})" if worst else "")


def table(runs: Runs) -> str:
    """Attack success rate in percent, and what a change costs."""
    exact = "white-box-autoattack"
    live = of(runs, exact, "generated")
    lines = [
        ("holds the live weights",
         of(runs, exact, "frozen"), live, of(runs, exact, "soup"),
         of(runs, exact, "generated", worst=True), of(runs, exact, "retrained")),
        ("kept twenty old generations",
         of(runs, "stale", "frozen"), "as above", of(runs, "stale", "soup"),
         of(runs, "stale", "generated", worst=True),
         f"{of(runs, 'stale', 'rival')} (joint attack alone)"),
        ("queries, and knows the clock",
         queried(runs, "frozen"), queried(runs, "generated"),
         queried(runs, "soup", CLOCK),
         queried(runs, "generated", CLOCK, worst=True),
         queried(runs, "retrained", CLOCK)),
        ("owns the generator",
         of(runs, "adaptive", "frozen"), "as above", of(runs, "adaptive", "soup"),
         of(runs, "adaptive", "generated", worst=True), of(runs, "adaptive", "retrained")),
        ("*cost of one change, CPU*", "none", "none", "none",
         seconds("guided + polish"), seconds("retrained")),
    ]  # fmt: skip
    return markdown(HEADER, lines)


def rivals(runs: Runs) -> str:
    """What costs nothing, or is fair, beside rotation."""
    joint, exact = of(runs, "stale-joint", "generated"), "white-box-autoattack"
    better = [int(of(runs, key, "soup")) < int(of(runs, key, "generated"))
              for key in (exact, "stale", "adaptive")]  # fmt: skip
    better.append(int(queried(runs, "soup", CLOCK)) < int(queried(runs, "generated", CLOCK)))
    if better != [True, False, True, True]:
        raise SystemExit("soups do not stand where README says: write its sentence anew")
    return (
        "Soups cost nothing and do better than rotation in every row but the second: most of the "
        "effect is the population's.\nNetworks retrained *on* the stored attacks met one joint "
        f"attack alone; under it rotation stands at {joint}, no better."
    )


def made() -> dict[str, str]:
    """Every block of README by the name of its mark."""
    runs = records()
    return {"headline": table(runs), "rivals": rivals(runs)}
