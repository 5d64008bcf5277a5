"""What more compute buys the base, and whether a stricter gate would have helped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.common.tables import markdown, shown
from benchmarks.robust.records import (
    WIDE,
    Alive,
    Record,
    alive,
    get,
    less,
    mean,
    of,
    redrawn,
    spread,
)

STEPS = {"PGD, 1/4 of the steps": "1/4", "PGD, 1/2 of the steps": "1/2", "PGD": "all"}
WIDER = {WIDE: "half, twice the width"}


def compute(data: Sequence[Record]) -> str:
    """What more training buys: the curve of the base's recipe, on the same images."""
    lines, names, size = [], [], data[0]["sizes"]["N"]
    for name, short in (STEPS | WIDER).items():
        have = [r for r in data if name in r["rows"]]
        if have:
            names += [name] if name in STEPS else []
            left = [alive(r, name) for r in have]
            lines.append([
                short, shown(of(have, name, "cpu_seconds"), 0, 1.0),
                shown(of(have, name, "clean"), 2),
                shown([float(a[:size].mean()) for a in left if a is not None]), str(len(have)),
                shown(of(data, f"fresh, {name}", "stale_joint", "accuracy")),
                spread(less(data, (f"fresh, {name}", "stale_joint"), (f"fresh, {name}", "itself"))),
            ])  # fmt: skip
    whole = [r for r in data if all(name in r["rows"] for name in names)]
    header = ["steps", "CPU s", "clean", "AutoAttack", "seeds", "stale, joint, as a fresh training",
              "above the attack on itself, points"]  # fmt: skip
    text = markdown(header, lines)
    return text + ("\n\n" + _extrapolated(whole, names) if len(names) > 2 and whole else "")


def _extrapolated(data: Sequence[Record], names: Sequence[str]) -> str:
    """A power law of the error in CPU seconds, and where it would reach the targets.

    Through the means of the seeds that have the whole curve; images are drawn anew for the
    interval. An error of 0 counts as 1 in 1,000.
    """
    drawn = redrawn(data, lambda record: [alive(record, name) for name in names])
    assert drawn is not None, "every one of these records has every point"
    cpu = np.log([mean(of(data, name, "cpu_seconds")) or 1.0 for name in names])
    error = np.log(np.maximum(1 - drawn.mean(1), 1e-3))  # (draws, points)
    slopes, offsets = np.polyfit(cpu, error.T, 1)
    low, high = np.quantile(slopes[1:], (0.025, 0.975))
    told = []
    for goal in (0.93, 0.96):
        with np.errstate(divide="ignore"):
            at = np.where(slopes < 0, (math.log(1 - goal) - offsets) / slopes, np.inf)
        at = np.maximum(at, cpu[0])  # a law says nothing below its shortest run
        least, most = np.quantile(at[1:], (0.025, 0.975), method="higher")
        told.append(
            f"{100 * goal:.0f} % {_seconds(at[0], 'at ', 'never')} ({_seconds(least, 'from ')} "
            f"{_seconds(most, 'to ', 'on, without a bound')})"
        )
    return (
        f"A power law through the {len(names)} points, means of {len(data)} "
        f"seed{'s'[: len(data) > 1]}, error ~ CPU^{slopes[0]:.2f} ({low:.2f} to {high:.2f}), "
        f"reaches {', '.join(told)}."
    )


def _seconds(log: float, before: str, never: str = "") -> str:
    """CPU seconds of a logarithm; what exceeds 4 months is never."""
    return f"{before}{math.exp(log):,.0f} CPU s" if log < math.log(1e7) else never


def floors(data: Sequence[Record]) -> str:
    """Would a stricter gate have kept the worst generation away? Those judged by AutoAttack."""
    have = [r for r in data if "generated" in r["rows"]]
    lines, ties = [], []
    for share in (0.0, 0.25, 0.5, 0.75):
        drops, passed = [], []
        for record in have:
            gate, left = _judged(record)
            floor = np.quantile([f["robust_accuracy"] for f in _figures(record)], share)
            drops.append(get(record, "both", "autoattack") - left[gate >= floor].min())
            passed.append(float((gate >= floor).sum()))
            ties.append(np.corrcoef(gate, left)[0, 1])
        words = f"the best {100 * (1 - share):.0f} % of the thirty by the gate's figure"
        lines.append([words if share else "as it was", shown(passed, 1, 1.0), shown(drops)])
    alone = [get(r, "both", "autoattack") - get(r, "both", "autoattack_worst") for r in have]
    lines.append(["no generation: the worst of four trained members", "–", shown(alone)])
    header = ["generations that a gate let pass", "of the ten judged", "worst of them below the "
              "members' mean, points"]  # fmt: skip
    said = f"Correlation of the gate's figure and AutoAttack over the ten: {np.mean(ties):.2f}."
    return f"{markdown(header, lines)}\n\n{said}"


def _figures(record: Record) -> list[dict[str, float]]:
    figures: list[dict[str, float]] = record["rows"]["generated"]["figures"]
    return figures


def _judged(record: Record) -> tuple[Alive, Alive]:
    """The gate's robust accuracy and AutoAttack of the newest and of those that PGD hurt most."""
    row, figures = record["rows"]["generated"], _figures(record)
    newest, suspects = row["autoattack_each"], row["suspects"]["autoattack_each"]
    first = len(figures) - len(newest)
    order = sorted(range(first), key=row["pgd_each"].__getitem__)[: len(suspects)]
    at = [*range(first, len(figures)), *order]
    return np.array([figures[i]["robust_accuracy"] for i in at]), np.array([*newest, *suspects])
