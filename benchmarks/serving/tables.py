"""Tables of docs/benchmarks/serving.md, from the JSON of its five scripts.

`benchmarks/tables.py` puts them in their places; what has not been measured says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import markdown
from benchmarks.hostile import fuzz, kills, tampering
from benchmarks.serving import run as serving
from benchmarks.serving import soak

Result = dict[str, Any]
SCRIPTS: dict[str, Callable[[Result], list[list[str]]]] = {
    "serving": serving.rows, "soak": soak.rows, "kills": kills.rows, "tampering": tampering.rows,
    "fuzz": fuzz.rows,
}  # fmt: skip


def results() -> dict[str, Result]:
    """What has been measured, by script."""
    paths = {name: RESULTS / f"{name}.json" for name in SCRIPTS}
    return {name: json.loads(p.read_text("utf-8")) for name, p in paths.items() if p.is_file()}


def targets(found: dict[str, Result]) -> str:
    """The issue's targets beside what was reached, every script's rows."""
    lines = []
    for name, rows in SCRIPTS.items():
        lines += rows(found[name]) if name in found else [[name, "–", "not measured yet"]]
    return markdown(["what", "target", "reached"], lines) + "\n\n" + conditions(found)


def conditions(found: dict[str, Result]) -> str:
    """In plain words, under what settings the rows hold."""
    given = found.get("serving", {}).get("arguments", {}).get("vault")
    own = "of the vault given with `--vault`" if given else "of a tiny vault made for it"
    return (
        f"`benchmarks.serving` rotates generations {own}, by that vault's gates. Soak, kills and"
        " tampering use a vault that makes a generation in 25 ms, so that thousands fit into an"
        " hour: nothing is guided, every quality gate is open, and each generation is compared with"
        " the one before it alone (where a service has to go on over damage: with eight). They"
        " judge serving, committing and refusing, and say nothing about how good or how different"
        " those generations are."
    )


def speeds(result: Result) -> str:
    """Answers a second and CPU time of each, by body and server."""
    lines = []
    names = ("g2d", *serving.RIVALS)
    for body, row in result["throughput"].items():
        line = [body]
        for name in names:
            line.append(f"{row['median'][name]:,.0f} ({row['cpu_us'][name]:.0f})")
        lines.append([*line, row["litserve"].removeprefix("litserve ")])
    header = ["body, inputs", "G2D", *serving.RIVALS.values(), "LitServe's batch, queue"]
    return markdown(header, lines)


def latencies(result: Result) -> str:
    """Percentiles while rotation is paused and while it runs."""
    keys = ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "max_ms")
    lines = []
    for name, row in result["latency"].items():
        for state in ("steady", "rotating"):
            lines.append([f"{name}: {state}", *(f"{row[state][key]:.2f}" for key in keys), "", ""])
        parts = [f"{row[part]['p99_ms']:.2f}" for part in ("near_a_swap", "apart_from_swaps")]
        lines[-1][-2:] = [" / ".join(parts), f"{row['make_s']:.2f} / {row['swap_ms'] / 1e3:.4f}"]
    header = [
        "run",
        "p50, ms",
        "p90",
        "p99",
        "p99.9",
        "worst",
        "p99 within 50 ms of a swap / of the rest",
        "s to make / to verify, commit, swap",
    ]
    return markdown(header, lines)


def machine(found: dict[str, Result]) -> str:
    """Where and when each was measured."""
    lines = []
    for name, r in found.items():
        h, v = r["hardware"], r["versions"]
        load = " / ".join(f"{part:.1f}" for part in h["load"])
        lines.append(
            f"- {name}: {r['date'][:16]}, {h['cpu']}, {h['cpu_count']} cores, load before it"
            f" {load}, Python {v['python']}, torch {v['torch']}, g2d {v['g2d']}"
        )
    return "\n".join(lines) or "Not measured yet."


def readme(found: dict[str, Result]) -> str:
    """What serving costs, in one paragraph."""
    if found.keys() != SCRIPTS.keys():
        return "Not measured yet."
    s, slow = found["serving"], found["serving"]["latency"]["rotating"]
    first = s["throughput"]["JSON, 1"]
    ratio = {name: first["ratios"][name]["ratio"] for name in ("fastapi", "litserve")}
    bad = sum(slow[key] for key in ("failed", "dropped", "wrong", "out_of_order"))
    k, soak_, t = found["kills"], found["soak"], found["tampering"]
    growth = [100 * soak_[f"{who}_growth"]["rss_mb"]["growth"] for who in ("service", "worker")]
    missed = t["accepted"] + t["crashes"]
    return (
        f"On two cores shared with worker and load: {slow['rotations']} rotations in"
        f" {slow['rotating_seconds']:.0f} s under {slow['rate']:,.0f} requests a second, {bad} of"
        f" {slow['answered']:,} answers failed, dropped, wrong or out of order ("
        f"{slow['rotating']['answers']:,} of them were given while it rotated); p99"
        f" {slow['rotating']['p99_ms']:.1f} ms while rotating, {slow['steady']['p99_ms']:.1f}"
        f" before ({slow['p99_ratio']:.2f} times). Throughput {ratio['fastapi']:.1f} times that of"
        f" FastAPI and {ratio['litserve']:.1f} times LitServe's for the same small model."
        f" {k['last_committed']} of {k['kills']} SIGKILLs came back on the last committed"
        f" generation, in {k['restart_s']['p50']:.1f} s (worst {k['restart_s']['max']:.1f});"
        f" {soak_['rotations']:,} rotations grew memory by {growth[0]:.1f} % (service) and"
        f" {growth[1]:.1f} % (worker); {t['cases'] - missed:,} of {t['cases']:,}"
        " tampered generations were refused."
    )


def made() -> dict[str, str]:
    """Every table by the name of its mark."""
    found = results()
    whole = {"serving-targets": targets(found), "serving-machine": machine(found)}
    whole["serving"] = readme(found)
    for name, make in (("serving-speed", speeds), ("serving-latency", latencies)):
        whole[name] = make(found["serving"]) if "serving" in found else "Not measured yet."
    return whole
