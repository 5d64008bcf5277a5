"""Targets for robust members beside what was reached, and what generating costs."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence

from benchmarks.common.tables import markdown, shown
from benchmarks.robust.records import (
    ALONE,
    TAUGHT,
    TWICE,
    WIDE,
    Record,
    get,
    kept,
    less,
    mean,
    of,
    spread,
)


def once(record: Record) -> float | None:
    """CPU seconds that are spent once: base, early checkpoints, members, generator."""
    each = get(record, "both", "cpu_seconds")
    if each is None or "fit_cpu_seconds" not in record:
        return None
    members = tomllib.loads(record["settings"])["population"]["members"]
    base, early = record["trainings"]["PGD"]["cpu_seconds"], record["early_cpu_seconds"]
    return float(base + sum(early) + members * each + record["fit_cpu_seconds"])


RIVALS = {"a training like the base's": "PGD", "a fork of a member": "both",
          "a training with FGSM-RS": "FGSM-RS"}  # fmt: skip


def share(record: Record, row: str) -> float | None:
    """How many generations one network of a row would pay for."""
    one, other = get(record, "generated", "cpu_seconds"), get(record, row, "cpu_seconds")
    return other / one if one and other else None


def worst_drop(record: Record) -> float | None:
    """AutoAttack accuracy of the members, less the worst generation's."""
    members, made = (get(record, "both", "autoattack"),
                     get(record, "generated", "autoattack_worst"))  # fmt: skip
    return None if members is None or made is None else members - made


def even(record: Record, row: str) -> float | None:
    """After how many rotations a network of a row at each would have cost as much, base apart.

    None where it never would.
    """
    spent, per = once(record), get(record, "generated", "cpu_seconds")
    base, other = get(record, "PGD", "cpu_seconds"), get(record, row, "cpu_seconds")
    if spent is None or per is None or other is None or other <= per:
        return None
    return float((spent - base) / (other - per))


def counted(data: Sequence[Record], row: str) -> str:
    """How many seeds a row has, where it lacks some."""
    have = sum(row in record["rows"] for record in data)
    return "" if have == len(data) else f" ({have} of {len(data)} seeds)"


def targets(data: Sequence[Record]) -> str:
    """The issue's targets beside what was reached."""
    header = ["what", "target", "reference", "reached", "met, by the mean"]
    return markdown(header, [*_of_training(data), *_of_generating(data), *_of_cost(data)])


def _of_training(data: Sequence[Record]) -> list[list[str]]:
    clean, aa = of(data, "PGD", "clean"), of(data, "PGD", "autoattack")
    wide = of(data, WIDE, "autoattack")
    students = [
        (words, kept(data, row), counted(data, row))
        for words, row in (
            ("RSLAD", TAUGHT), ("RSLAD, twice as long", TAUGHT + TWICE),
            ("without a teacher", ALONE),
        )
    ]  # fmt: skip
    flipped = "flips, standard, clamped"
    minutes = [r["trainings"]["PGD"]["wall_seconds"] / 60 for r in data]
    alone = of(data, flipped, "fragile", "value")
    held = of(data, f"{flipped}, in ranges", "fragile", "value")
    return [
        ["clean accuracy after adversarial training", "≥ 98.8 %", "the blog: 52.6 %",
         f"PGD {shown(clean, 2)}, TRADES {shown(of(data, 'TRADES', 'clean'), 2)}",
         met(mean(clean), at_least=0.988)],
        ["AutoAttack, one trained model (500 images)", "≥ 93 %",
         "TRADES 92.81, Madry 88.50, Wong 82.93",
         f"PGD {shown(aa)}; twice as wide, half the steps {shown(wide)}, a gain of "
         f"{spread(less(data, (WIDE,), ('PGD',)))} points",
         f"{met(mean(aa), at_least=0.93)}; {met(mean(wide), at_least=0.93)}"],
        ["training the robust base, minutes on one core", "≤ 20 on two", "100k × 50 × PGD-40",
         shown(minutes, 1, 1.0), met(mean(minutes), at_most=20)],
        ["robust student at 1/10 of the parameters, of the teacher's AutoAttack", "≥ 95 %", "–",
         "; ".join(f"{words}{seeds} {spread(v)}" for words, v, seeds in students),
         "; ".join(met(v and v[0], at_least=0.95) for _, v, _ in students)],
        ["parameters whose worst bit flip costs > 10 points, with clamps", "≤ 1 %",
         "40–50 % (relative)", f"{shown(alone, 2)} clamped in training alone; {shown(held, 2)} "
         "held in the clamped ranges when served",
         f"{met(mean(alone), at_most=0.01)}; {met(mean(held), at_most=0.01)}"],
    ]  # fmt: skip


def _of_generating(data: Sequence[Record]) -> list[list[str]]:
    generated, stale = ("generated",), ("generated", "stale_joint")
    stayed = ("generated", "controls", "the newest exposed, had it stayed", "stale_joint")
    drop, lead = less(data, ("both",), generated), less(data, stale, generated)
    eot = less(data, ("generated", "adaptive"), ("PGD",))
    owning = less(data, ("generated", "owning"), ("PGD",))
    drops, joint = [worst_drop(r) for r in data], of(data, *stale, "accuracy")
    return [
        ["AutoAttack, members less generated, mean", "≤ 0.5 points", "–", spread(drop),
         met(drop and drop[0], at_most=0.005)],
        ["the same, worst of 10 of 30", "≤ 1.5 points", "–", shown(drops),
         met(mean(drops), at_most=0.015)],
        ["stale joint-20 accuracy of generated", "≥ 96 %", "Madry challenge: 93.5", shown(joint),
         met(mean(joint), at_least=0.96)],
        ["… above its AutoAttack", "≥ 2 points", "Madry challenge: 5.5", spread(lead),
         met(lead and lead[0], at_least=0.02)],
        ["… above the same attacks on itself", "–", "–",
         spread(less(data, stale, ("generated", "itself"))), "–"],
        ["… above an exposed generation under the same joint attack, had it stayed", "–", "–",
         spread(less(data, stale, stayed)), "–"],
        ["adaptive EOT accuracy, above the trained model's AutoAttack", "≥ 0 points", "–",
         spread(eot), met(eot and eot[0], at_least=0.0)],
        ["… if each of twenty stored attacks may be tried, too", "≥ 0 points", "–",
         spread(owning), met(owning and owning[0], at_least=0.0)],
    ]  # fmt: skip


def _of_cost(data: Sequence[Record]) -> list[list[str]]:
    shares, spent = [share(r, "PGD") for r in data], [once(r) for r in data]
    return [
        ["one robust generation, of the CPU time of training one robust model", "≤ 1/20", "–",
         f"{shown(shares, 1, 1.0)} generations a training", met(mean(shares), at_least=20.0)],
        ["… spent once before, CPU s", "–", "–", shown(spent, 0, 1.0), "–"],
        *([f"… instead, {words} at each rotation: its cost in generations; rotations until it had "
           "cost as much as all that generating needs", "–", "–",
           f"{shown([share(r, row) for r in data], 1, 1.0)}; "
           f"{shown([even(r, row) for r in data], 0, 1.0)}", "–"]
          for words, row in RIVALS.items()),
    ]  # fmt: skip


def met(value: float | None, *, at_least: float = -math.inf, at_most: float = math.inf) -> str:
    """Whether a point estimate keeps to a target."""
    if value is None:
        return "–"
    return "yes" if at_least - 1e-9 <= value <= at_most + 1e-9 else "**no**"
