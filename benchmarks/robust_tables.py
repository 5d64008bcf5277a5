"""Tables of docs/benchmarks.md's section on robust members, from robust.py's JSON of every seed."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from measure import interval

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]
Alive = NDArray[np.float64]
Spread = tuple[float, float, float]
WIDE, WIDEST = "PGD, twice the width", "PGD, twice the width, all steps"
TAUGHT, LONGER = "student, RSLAD", "student, RSLAD, 2 × the steps"
ROWS = (
    "standard, ordinary CNN", "standard", "standard, clamped",
    "FGSM at eps = 1 alone, ordinary CNN", "FGSM-RS, unguarded", "FGSM-RS", "PGD", "TRADES",
    WIDE, WIDEST,
    "repelled", "adversarial", "both", "generated", "student, adversarial", TAUGHT, LONGER,
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
)


def records() -> list[Record]:
    """Every seed's results."""
    return [json.loads(p.read_text()) for p in sorted(RESULTS.glob("robust-mnist-seed*.json"))]


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
    """The share of a row's networks that each of the first N images survives on, (N,)."""
    found = get(record, row, *path, "survivors")
    if not found:
        return None
    size = record["sizes"]["N"]
    return np.array([[c == "1" for c in one[:size]] for one in found], float).mean(0)


STEPS = {"PGD, 1/4 of the steps": "1/4", "PGD, 1/2 of the steps": "1/2", "PGD": "all"}
WIDER = {WIDE: "half, twice the width", WIDEST: "all, twice the width"}
Pick = Callable[[Record], Sequence[Alive | None]]


def paired(data: Sequence[Record], pick: Pick, combine: Callable[..., float]) -> Spread | None:
    """A number made of several accuracies on the same images, with its 95 % bootstrap interval.

    Images are drawn anew within each seed, the same for all that is compared; seeds are averaged.
    The interval covers the choice of images, not the luck of training.
    """
    picked = [pick(record) for record in data]
    whole = [[a for a in one if a is not None] for one in picked if all(a is not None for a in one)]
    if not whole:
        return None
    draws = np.random.default_rng(0)
    values = []
    for turn in range(2001):
        each = []
        for parts in whole:
            n = len(parts[0])
            index = np.arange(n) if turn == 0 else draws.integers(0, n, n)
            each.append(combine(*(part[index].mean() for part in parts)))
        values.append(float(np.mean(each)))
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return values[0], float(low), float(high)


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
        ])  # fmt: skip
    header = ["recipe", "clean", "AutoAttack, mean", "worst network, of", "transfer attacks on "
              "itself", "stale, joint", "adaptive, EOT", "parameters",
              "CPU s a network", "seeds"]  # fmt: skip
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


def share(record: Record) -> float | None:
    """How many generations one training of the base would pay for."""
    one, base = get(record, "generated", "cpu_seconds"), get(record, "PGD", "cpu_seconds")
    return base / one if one else None


def worst_drop(record: Record) -> float | None:
    """AutoAttack accuracy of the members, less the worst generation's."""
    members, made = (get(record, "both", "autoattack"),
                     get(record, "generated", "autoattack_worst"))  # fmt: skip
    return None if members is None or made is None else members - made


def even(record: Record) -> float | None:
    """After how many generations retraining each time would have cost as much."""
    spent, per = once(record), get(record, "generated", "cpu_seconds")
    base = get(record, "PGD", "cpu_seconds")
    return None if spent is None or per is None else (spent - base) / (base - per)


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
    student, longer, flipped = kept(data, TAUGHT), kept(data, LONGER), "flips, standard, clamped"
    minutes = [r["trainings"]["PGD"]["wall_seconds"] / 60 for r in data]
    alone = of(data, flipped, "fragile", "value")
    held = of(data, f"{flipped}, in ranges", "fragile", "value")
    return [
        ["clean accuracy after adversarial training", "≥ 98.8 %", "the blog: 52.6 %",
         f"PGD {shown(clean, 2)}, TRADES {shown(of(data, 'TRADES', 'clean'), 2)}",
         met(mean(clean), at_least=0.988)],
        ["AutoAttack, one trained model (500 images)", "≥ 93 %",
         "TRADES 92.81, Madry 88.50, Wong 82.93",
         f"PGD {shown(aa)}; twice as wide{counted(data, WIDE)} {shown(wide)}, a gain of "
         f"{spread(less(data, (WIDE,), ('PGD',)))} points on 150 images",
         f"{met(mean(aa), at_least=0.93)}; {met(mean(wide), at_least=0.93)}"],
        ["training the robust base, minutes on one core", "≤ 20 on two", "100k × 50 × PGD-40",
         shown(minutes, 1, 1.0), met(mean(minutes), at_most=20)],
        ["robust student (RSLAD) at 1/10 of the parameters, of the teacher's AutoAttack", "≥ 95 %",
         "–", f"{spread(student)}; twice as long{counted(data, LONGER)} {spread(longer)}; without "
         f"a teacher {spread(kept(data, 'student, adversarial'))}",
         f"{met(student and student[0], at_least=0.95)}; "
         f"{met(longer and longer[0], at_least=0.95)}"],
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
    ]  # fmt: skip


def _of_cost(data: Sequence[Record]) -> list[list[str]]:
    shares = [share(r) for r in data]
    spent, turns = [once(r) for r in data], [even(r) for r in data]
    return [
        ["one robust generation, of the CPU time of training one robust model", "≤ 1/20", "–",
         f"1/{shown(shares, 1, 1.0)}", met(mean(shares), at_least=20.0)],
        ["… spent once before, CPU s; generations until retraining would have cost as much", "–",
         "–", f"{shown(spent, 0, 1.0)}; {shown(turns, 1, 1.0)}", "–"],
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
    lines, names = [], []
    for name, short in (STEPS | WIDER).items():
        have = [r for r in data if name in r["rows"]]
        if have:
            names += [name] if name in STEPS else []
            left = [alive(r, name) for r in have]
            lines.append([
                short, shown(of(have, name, "cpu_seconds"), 0, 1.0),
                shown(of(have, name, "clean"), 2),
                shown([float(a.mean()) for a in left if a is not None]), str(len(have)),
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

    From the seeds that have the whole curve; images are drawn anew for the interval.
    """
    cpu = np.log([mean(of(data, name, "cpu_seconds")) or 1.0 for name in names])
    goals = {goal: paired(data, _curve(names), _reached(cpu, goal)) for goal in (0.93, 0.96)}
    slope = paired(data, _curve(names), lambda *left: _fitted(cpu, left)[0])
    assert slope is not None, "every one of these records has every point"
    told = ", ".join(
        f"{100 * goal:.0f} % at {_seconds(found[0])} CPU s ({_seconds(found[1])} to "
        f"{_seconds(found[2])})"
        for goal, found in goals.items() if found
    )  # fmt: skip
    return (
        f"A power law through the {len(names)} points of {len(data)} seed{'s'[: len(data) > 1]}, "
        f"error ~ CPU^{slope[0]:.2f} ({slope[1]:.2f} to {slope[2]:.2f}), reaches {told}."
    )


def _curve(names: Sequence[str]) -> Pick:
    return lambda record: [alive(record, name) for name in names]


def _fitted(cpu: Alive, left: Sequence[float]) -> tuple[float, float]:
    """Slope and offset of log error in log CPU seconds; an error of 0 counts as 1 in 1,000."""
    slope, offset = np.polyfit(cpu, np.log([max(1 - v, 1e-3) for v in left]), 1)
    return float(slope), float(offset)


def _reached(cpu: Alive, goal: float) -> Callable[..., float]:
    """CPU seconds at which the law reaches a goal, as a power of ten; 9 stands for never."""

    def power(*left: float) -> float:
        slope, offset = _fitted(cpu, left)
        return min(9.0, (math.log(1 - goal) - offset) / slope / math.log(10)) if slope < 0 else 9.0

    return power


def _seconds(power: float) -> str:
    return "never" if power >= 7 else f"{10**power:,.0f}"


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
        commits = sorted({str(row.get("commit", "")) for row in record["rows"].values()} - {""})
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
        found["robust"] = lines(data)
    return found


def lines(data: Sequence[Record]) -> str:
    """README's three lines: what it buys, what it costs, what it does not buy."""

    def told(*path: str) -> str:
        return shown(of(data, "generated", *path))

    stayed = ("controls", "the newest exposed, had it stayed", "stale_joint")
    rotating = less(data, ("generated", "stale_joint"), ("generated", *stayed))
    paid = mean([share(r) for r in data]) or math.nan
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
        f"- **What rotation adds to it: next to nothing.** A joint attack on twenty exposed "
        f"generations leaves {told('stale_joint', 'accuracy')} % of the next one and "
        f"{told(*stayed, 'accuracy')} % of the newest exposed one, had it stayed "
        f"({spread(rotating)} points between them); an attack on the one before alone leaves "
        f"{told('stale_single', 'accuracy')} %. Robust networks err on the same inputs; a whole "
        f"fresh training leaves "
        f"{told('controls', 'fresh trainings, other seeds', 'stale_joint', 'accuracy')} %.\n"
        f"- **What it costs.** One generation takes 1/{paid:.0f} of the CPU time of training one "
        f"robust model, after {shown([once(r) for r in data], 0, 1.0)} CPU s spent once. Whoever "
        f"owns the generator leaves {told('adaptive', 'accuracy')} %."
    )
