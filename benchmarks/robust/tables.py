"""Tables of docs/benchmarks.md's section on robust members, from robust.py's JSON of every seed."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.measure import interval
from benchmarks.common.places import RESULTS

Record = dict[str, Any]
Alive = NDArray[np.float64]
Spread = tuple[float, float, float]
FRESH, WIDE = "fresh trainings, other seeds", "PGD, twice the width"
ALONE, TAUGHT = "student, adversarial", "student, RSLAD"
TWICE = ", 2 × the steps"
ROWS = (
    "standard, ordinary CNN", "standard", "standard, clamped",
    "FGSM at eps = 1 alone, ordinary CNN", "FGSM-RS", "PGD", "TRADES",
    WIDE,
    "repelled", "adversarial", "both", "generated",
    "student, standard", ALONE, TAUGHT, TAUGHT + TWICE,
    "student, teacher of defensive distillation", "student, defensive distillation",
)  # fmt: skip
ATTACKERS = (
    ("current weights: AutoAttack", "autoattack"),
    ("current weights: the three transfer attacks", "itself"),
    ("the generation before", "stale_single"),
    ("the last twenty, any of twenty attacks may hit", "stale_any"),
    ("the last twenty, one joint attack", "stale_joint"),
    ("the first twenty, one joint attack, all eleven later ones", "stale_early"),
    ("the generator too, all eleven later ones", "adaptive"),
    ("the generator too, and any of twenty attacks may hit", "owning"),
)


def records() -> list[Record]:
    """Every seed's results, and what follows from them."""
    found = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("robust-mnist-seed*.json"))]
    for record in found:
        if generated := record["rows"].get("generated"):
            generated["owning"] = _owning(generated)
            # The controls knew the networks of other seeds that there were when the chain was made.
            fresh = generated["controls"].get(FRESH)
            if fresh and (whole := record["rows"].get("fresh, PGD")):
                fresh |= {key: whole[key] for key in ("stale_joint", "itself")}
    return found


def _owning(generated: Record) -> Record:
    """Images that survive the adaptive attacks and each of twenty stored ones; newest targets."""
    stored, adaptive = generated["stale_any"]["survivors"], generated["adaptive"]["survivors"]
    both = [
        "".join(str(int(a == b == "1")) for a, b in zip(*one, strict=True))
        for one in zip(stored, adaptive[-len(stored) :], strict=True)
    ]
    each = [one.count("1") / len(one) for one in both]
    return {"accuracy": sum(each) / len(each), "worst": min(each), "survivors": both}


def table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *lines))


def shown(values: Sequence[float | None], digits: int = 1, scale: float = 100.0) -> str:
    """`mean ± half width` over seeds; two seeds give both values, none a dash."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean, _, high = interval(known)
    text = f"{scale * mean:.{digits}f}"
    if len(known) == 2:
        low, high = min(known), max(known)
        return f"{text} ({scale * low:.{digits}f}, {scale * high:.{digits}f})"
    return text if len(known) == 1 else f"{text} ± {scale * (high - mean):.{digits}f}"


def least(values: Sequence[float | None]) -> str:
    """The worst of all seeds."""
    known = [v for v in values if v is not None]
    return f"{100 * min(known):.1f}" if known else "–"


def get(record: Record, row: str, *path: str) -> Any:
    """One value of a row; None where it was not measured."""
    value: Any = record["rows"].get(row)
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def of(data: Sequence[Record], row: str, *path: str) -> list[float | None]:
    """One number of a row, for every seed."""
    return [get(record, row, *path) for record in data]


def alive(record: Record, row: str, *path: str) -> Alive | None:
    """The share of a row's networks that each of its images survives on, (images,)."""
    found = get(record, row, *path, "survivors")
    return np.array([[c == "1" for c in one] for one in found], float).mean(0) if found else None


STEPS = {"PGD, 1/4 of the steps": "1/4", "PGD, 1/2 of the steps": "1/2", "PGD": "all"}
WIDER = {WIDE: "half, twice the width"}
Pick = Callable[[Record], Sequence[Alive | None]]


def paired(data: Sequence[Record], pick: Pick, combine: Callable[..., float]) -> Spread | None:
    """A number made of several accuracies on the same images, with its 95 % bootstrap interval.

    Images are drawn anew within each seed, the same for all that is compared; seeds are averaged.
    The interval covers the choice of images, not the luck of training.
    """
    drawn = redrawn(data, pick)
    if drawn is None:
        return None
    values = [float(np.mean([combine(*one) for one in turn])) for turn in drawn]
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return values[0], float(low), float(high)


def redrawn(data: Sequence[Record], pick: Pick) -> Alive | None:
    """Accuracies (1 + 2000, seeds, picked): as measured, then of images that are drawn anew.

    Rows of more images than others begin with the same ones, which count alone.
    """
    picked = [pick(record) for record in data]
    whole = [[a for a in one if a is not None] for one in picked if all(a is not None for a in one)]
    if not whole:
        return None
    draws = np.random.default_rng(0)
    turns = []
    for turn in range(2001):
        each = []
        for parts in whole:
            n = min(len(part) for part in parts)
            index = np.arange(n) if turn == 0 else draws.integers(0, n, n)
            each.append([part[index].mean() for part in parts])
        turns.append(each)
    return np.array(turns)


def spread(found: Spread | None, digits: int = 1) -> str:
    """Show `paired`, in points or percent."""
    if found is None:
        return "–"
    value, low, high = (100 * v for v in found)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def recipes(data: Sequence[Record]) -> str:
    """Every recipe beside the others."""
    lines = []
    for name in ROWS:
        if not any(name in record["rows"] for record in data):
            continue
        networks = max(v for v in of(data, name, "networks") if v)
        judged = networks + (5 if name == "generated" else 0)
        worst = f"{least(of(data, name, 'autoattack_worst'))} of {int(judged)}"
        switched = sum(bool(v) for v in of(data, name, "switched_to_pgd"))
        seeds = sum(name in record["rows"] for record in data)
        known = next((int(v) for v in of(data, name, "stale_joint", "known") if v), None)
        parameters = next(v for v in of(data, name, "parameters") if v)
        lines.append([
            name + (f" ({switched} of {seeds} seeds ended with PGD)" if switched else ""),
            shown(of(data, name, "clean"), 2), shown(of(data, name, "autoattack")),
            worst if judged > 1 else "–", shown(of(data, name, "itself", "accuracy")),
            shown(of(data, name, "stale_joint", "accuracy")) + (f" on {known}" if known else ""),
            shown(of(data, name, "adaptive", "accuracy")), f"{int(parameters):,}",
            shown(of(data, name, "cpu_seconds"), 1, 1.0), str(seeds),
            str(min(int(v) for v in of(data, name, "images") if v)),
        ])  # fmt: skip
    header = ["recipe", "clean", "AutoAttack, mean", "worst network, of", "transfer attacks on "
              "itself", "stale, joint", "adaptive, EOT", "parameters",
              "CPU s a network", "seeds", "images"]  # fmt: skip
    return table(header, lines)


def attackers(data: Sequence[Record]) -> str:
    """What an attacker of the generated chain has, and what is left of the accuracy."""
    lines = []
    for words, key in ATTACKERS:
        path = () if key == "autoattack" else (key,)
        mean = of(data, "generated", *path, "autoattack" if key == "autoattack" else "accuracy")
        worst = of(data, "generated", *path, "autoattack_worst" if not path else "worst")
        lines.append([words, shown(mean), least(worst)])
    fresh = ("generated", "adaptive", "fresh_samples")
    lines.append([
        "the generator too, on a hundred unguided samples",
        shown(of(data, *fresh, "accuracy")), least(of(data, *fresh, "worst")),
    ])  # fmt: skip
    return table(["the attacker has", "accuracy left", "worst network of any seed"], lines)


def controls(data: Sequence[Record]) -> str:
    """What stands in the place of the newest generation, under the very same stale attack."""
    names = ["generated"]
    for record in data:
        names += [n for n in get(record, "generated", "controls") or () if n not in names]
    lines = []
    for name in names:
        path = ("generated",) if name == "generated" else ("generated", "controls", name)

        def both(record: Record, path: tuple[str, ...] = path) -> list[Alive | None]:
            return [alive(record, *path, key) for key in ("stale_joint", "itself")]

        lines.append([
            name, shown(of(data, *path, "clean"), 2),
            shown(of(data, *path, "itself", "accuracy")),
            shown(of(data, *path, "stale_joint", "accuracy")),
            spread(paired(data, both, lambda a, b: a - b)),
        ])  # fmt: skip
    header = ["in the place of the next generation", "clean", "the attack on itself", "the joint "
              "attack on the last twenty", "the difference, points"]  # fmt: skip
    return table(header, lines)


def masking(data: Sequence[Record]) -> str:
    """One attack at a time on the base, and a growing budget."""
    known = [r["rows"]["masking"] for r in data if "masking" in r["rows"]]
    if not known:
        return ""
    skip = ("sweep", "judging_cpu_seconds", "commit")
    lines = [[name, shown([one[name] for one in known])] for name in known[0] if name not in skip]
    lines += [
        [f"PGD-40 and APGD-CE-40 at ε = {eps}", shown([one["sweep"][eps] for one in known])]
        for eps in known[0]["sweep"]
    ]
    return table(["attack on row PGD", "accuracy left"], lines)


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
    return f"{table(header, lines)}\n\n{said}"


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


def even(record: Record, row: str) -> float | None:
    """After how many rotations a network of a row at each would have cost as much, base apart.

    None where it never would.
    """
    spent, per = once(record), get(record, "generated", "cpu_seconds")
    base, other = get(record, "PGD", "cpu_seconds"), get(record, row, "cpu_seconds")
    if spent is None or per is None or other is None or other <= per:
        return None
    return float((spent - base) / (other - per))


def less(data: Sequence[Record], one: tuple[str, ...], other: tuple[str, ...]) -> Spread | None:
    """One accuracy less another, paired by image."""
    return paired(data, lambda r: (alive(r, *one), alive(r, *other)), lambda a, b: a - b)


def kept(data: Sequence[Record], row: str) -> Spread | None:
    """A row's AutoAttack accuracy as a share of the base's, on the same images."""
    return paired(data, lambda r: (alive(r, row), alive(r, "PGD")), lambda a, b: a / b)


def counted(data: Sequence[Record], row: str) -> str:
    """How many seeds a row has, where it lacks some."""
    have = sum(row in record["rows"] for record in data)
    return "" if have == len(data) else f" ({have} of {len(data)} seeds)"


def targets(data: Sequence[Record]) -> str:
    """The issue's targets beside what was reached."""
    header = ["what", "target", "reference", "reached", "met, by the mean"]
    return table(header, [*_of_training(data), *_of_generating(data), *_of_cost(data)])


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


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what was measured."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def met(value: float | None, *, at_least: float = -math.inf, at_most: float = math.inf) -> str:
    """Whether a point estimate keeps to a target."""
    if value is None:
        return "–"
    return "yes" if at_least - 1e-9 <= value <= at_most + 1e-9 else "**no**"


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
    text = table(header, lines)
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
              "costliest flip met, points"]  # fmt: skip
    return table(header, lines)


def machine(data: Sequence[Record]) -> str:
    """Where and when, and by which code."""
    lines = []
    for record in data:
        commits = sorted({str(row.get("commit", "unknown")) for row in record["rows"].values()})
        told = ", ".join(f"{key}: {value}" for key, value in record["hardware"].items())
        lines.append(f"- seed {record['seed']}: {told}, commits: {', '.join(commits)}")
    return "\n".join(lines)


def made() -> dict[str, str]:
    """Every table by name."""
    data = records()
    if not data:
        return {}
    found = {
        "robust-recipes": recipes(data),
        "robust-attackers": attackers(data),
        "robust-controls": controls(data),
        "robust-masking": masking(data),
        "robust-targets": targets(data),
        "robust-compute": compute(data),
        "robust-flips": flips(data),
        "robust-machine": machine(data),
    }
    if any("generated" in record["rows"] for record in data):
        found["robust"], found["robust-floors"] = lines(data), floors(data)
    return found


def lines(data: Sequence[Record]) -> str:
    """README's three lines: what it buys, what it costs, what it does not buy."""

    def told(*path: str) -> str:
        return shown(of(data, "generated", *path))

    stayed = ("controls", "the newest exposed, had it stayed", "stale_joint")
    rotating = less(data, ("generated", "stale_joint"), ("generated", *stayed))
    paid, forked = (mean([share(r, row) for r in data]) or math.nan for row in ("PGD", "both"))
    return (
        f"**Robust and rotating** (MNIST, ε = 0.3; accuracy left; {len(data)} seeds; "
        f"[tables](docs/benchmarks.md#robust-members)).\n\n"
        f"- **What hardening buys.** An adversarially trained base keeps "
        f"{shown(of(data, 'PGD', 'clean'), 2)} % clean and "
        f"{shown(of(data, 'PGD', 'autoattack'))} % under AutoAttack; generations made from such a "
        f"population keep {told('clean')} % and {told('autoattack')} %, a student of a tenth of "
        f"the parameters {spread(kept(data, TAUGHT), 0)} % of its teacher's robustness. Part of "
        f"it is the network's fixed soft threshold: plainly trained it keeps "
        f"{shown(of(data, 'standard', 'autoattack'), 0)} %, an ordinary CNN "
        f"{shown(of(data, 'standard, ordinary CNN', 'autoattack'), 0)} %.\n"
        f"- **What rotation adds to it: a little against whoever holds one stored attack, nothing "
        f"against twenty.** An attack on the generation before leaves "
        f"{told('stale_single', 'accuracy')} % of the next, where one on its own parameters leaves "
        f"{told(*stayed[:-1], 'itself', 'accuracy')} % of a generation that stays. A joint attack "
        f"on twenty exposed ones leaves {told('stale_joint', 'accuracy')} % of the next and "
        f"{told(*stayed, 'accuracy')} % of the newest of the twenty, had it stayed "
        f"({spread(rotating)} points between them); tried one by one, twenty stored attacks leave "
        f"{told('stale_any', 'accuracy')} %. Robust networks err on the same inputs; a whole fresh "
        f"training leaves {told('controls', FRESH, 'stale_joint', 'accuracy')} % under the joint "
        f"attack.\n"
        f"- **What it costs.** One generation takes 1/{paid:.0f} of the CPU time of training one "
        f"robust model and 1/{forked:.1f} of that of forking a member, which gives a network as "
        f"robust; {shown([once(r) for r in data], 0, 1.0)} CPU s are spent once before. Against "
        f"an attacker who owns the generator {told('adaptive', 'accuracy')} % stay right, "
        f"{told('owning', 'accuracy')} % if the twenty stored attacks are tried, too."
    )
