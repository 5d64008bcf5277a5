"""Tables of docs/benchmarks/nslkdd.md, from the JSON of benchmarks.tabular.nslkdd."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown, mean, ranged

Runs = list[dict[str, Any]]
NAMES = {
    "frozen": "frozen base",
    "rotated": "**rotated**",
    "soup": "soup of four",
    "hardened": "hardened retraining",
    "retrained on attacks": "retrained on the attacks",
}
SETS = ("held_out", "test")
STAGES = ("population", "fit", "rotations", "matrix")
KINDS = ("seconds", "cpu")


def records() -> Runs:
    """Every seed's results."""
    return [json.loads(p.read_text()) for p in sorted(RESULTS.glob("nslkdd-seed*.json"))]


def of(runs: Runs, row: str, *path: str) -> list[float]:
    """One number of a row, seed by seed."""
    found = []
    for run in runs:
        value = run["rows"][row]
        for key in path:
            value = value[key]
        found.append(value)
    return found


def pair(runs: Runs, row: str, *path: str, last: str) -> str:
    """A number on held-out training flows and on the official test flows."""
    return " / ".join(ranged(of(runs, row, *path, name, last)) for name in SETS)


def exact(runs: Runs, row: str) -> str:
    """ASR of an attacker who reads the network itself; the frozen base's is its stale one."""
    key = "stale" if row == "frozen" else "white_box"
    return pair(runs, row, key, last="all") if key in runs[0]["rows"][row] else NOTHING


def matrix(runs: Runs) -> str:
    """Every row: what it does of itself, and what stale attacks make of it."""
    lines = [
        [
            name, pair(runs, row, "clean", last="accuracy"),
            pair(runs, row, "clean", last="detection"),
            pair(runs, row, "stale", last="all"), pair(runs, row, "stale", last="attacks"),
            pair(runs, row, "worst", last="attacks"), exact(runs, row),
        ]
        for row, name in NAMES.items()
    ]  # fmt: skip
    header = ("network", "accuracy", "detection at 1 % false alarms", "stale joint ASR",
              "of attacks alone", "worst network, of attacks alone",
              "white-box ASR")  # fmt: skip
    return markdown(header, lines)


def drift(runs: Runs) -> str:
    """What the official test flows do to a base whose threshold was set on training flows."""
    lines = [
        [
            label, ranged(of(runs, "frozen", "clean", name, "accuracy")),
            ranged(of(runs, "frozen", "clean", name, "detection")),
            ranged(of(runs, "frozen", "clean", name, "gate_threshold", "detection")),
            ranged(of(runs, "frozen", "clean", name, "gate_threshold", "false_alarms"), 2),
        ]
        for name, label in zip(SETS, ("held-out training flows", "official flows"), strict=True)
    ]  # fmt: skip
    header = ("flows", "accuracy", "detection at 1 % false alarms of their own",
              "detection, threshold of the gate split", "its false alarms")  # fmt: skip
    return markdown(header, lines)


def cost(runs: Runs) -> str:
    """Wall and CPU seconds of each stage."""
    controls = [stage for stage in runs[0]["cpu"] if stage not in STAGES]

    def line(stage: str, name: str) -> list[str]:
        return [name, *(ranged([r[kind][stage] for r in runs], 0, 1.0) for kind in KINDS)]

    lines = [
        *(line(stage, stage) for stage in STAGES),
        ["whole story", *(ranged(spent(runs, kind), 0, 1.0) for kind in KINDS)],
        *(line(stage, f"beside it, the control: {stage}") for stage in controls),
    ]
    return markdown(("stage", "seconds", "CPU seconds"), lines)


def spent(runs: Runs, kind: str) -> list[float]:
    """What each seed's whole story took, without the training of its controls."""
    return [sum(run[kind][stage] for stage in STAGES) for run in runs]


def targets(runs: Runs) -> str:
    """What issue 16 asked for, as it came out."""
    base = of(runs, "frozen", "clean", "held_out", "accuracy")
    ratios = {
        kind: [
            rotated / frozen
            for rotated, frozen in zip(
                of(runs, "rotated", "stale", "held_out", kind),
                of(runs, "frozen", "stale", "held_out", kind), strict=True,
            )
        ]
        for kind in ("all", "attacks")
    }  # fmt: skip
    lost = [
        before - after
        for before, after in zip(
            of(runs, "frozen", "clean", "held_out", "detection"),
            of(runs, "rotated", "clean", "held_out", "detection"), strict=True,
        )
    ]  # fmt: skip
    told = [run["candidates"] for run in runs]
    counts = (
        ranged([each[k] for each in told], 0, 1.0) for k in ("accepted", "refused", "given_up")
    )
    made, refused, given_up = counts
    cores, load = runs[0]["hardware"]["cpu_count"], mean([r["hardware"]["load"][0] for r in runs])
    wall, cpu = (ranged(spent(runs, kind), 0, 1.0) for kind in KINDS)
    lines = [
        ("base on held-out training flows", "at least 99 %", ranged(base, 2) + " %"),
        ("stale joint ASR, rotated over frozen, held-out flows", "at most 0.2",
         f"{ranged(ratios['all'], 2, 1.0)}; attacks alone {ranged(ratios['attacks'], 2, 1.0)}"),
        ("detection that rotation costs, held-out flows", "at most 0.3 points",
         f"{ranged(lost, 2)} points"),
        ("rotations made, of twenty; candidates that gates refused; times that no candidate of one"
         " rotation passed", NOTHING, f"{made}; {refused}; {given_up}"),
        ("whole story on two idle cores, controls not counted", "at most 300 s",
         f"{wall} s on {cores} cores (load before it {load:.1f}); {cpu} CPU seconds"),
    ]  # fmt: skip
    return markdown(TARGETS, lines)


def trials() -> str:
    """What other settings gave on the gate split, where those of the task were chosen."""
    tried = json.loads((RESULTS / "nslkdd-trials.json").read_text())["trials"]
    header = ("settings", "detection of the base / of the best member",
              "detection that rotation costs, points", "stale joint ASR, rotated / frozen",
              "white-box ASR", "candidates", "CPU seconds a member")  # fmt: skip
    return markdown(header, [_trial(name, trial) for name, trial in tried.items()])


def _trial(name: str, trial: dict[str, Any]) -> list[str]:
    """One line; a trial that gave up early has no figures of its own."""
    asr = [ranged([trial[f"asr_{key}"]], 1) for key in ("stale", "frozen", "white")]
    judged = f"{trial['accepted']} accepted, {trial['refused']} refused"
    lost = trial["base"] - mean(trial["generations"]) if trial["generations"] else None
    return [
        name, f"{ranged([trial['base']], 2)} / {ranged([max(trial['members'])], 2)}",
        ranged([lost], 2), " / ".join(asr[:2]), asr[2],
        judged + (", gave up" if trial["gave_up"] else ""),
        ranged([mean(trial["member_cpu_seconds"])], 1, 1.0),
    ]  # fmt: skip


def made() -> dict[str, str]:
    """Every table by name; none before there is a run."""
    runs = records()
    if not runs:
        return {}
    return {
        "nslkdd-matrix": matrix(runs),
        "nslkdd-drift": drift(runs),
        "nslkdd-cost": cost(runs),
        "nslkdd-targets": targets(runs),
        "nslkdd-trials": trials(),
    }
