"""Tables of docs/benchmarks/robust.md, from the JSON of every seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.common.tables import markdown, shown
from benchmarks.robust.compute import compute, floors
from benchmarks.robust.records import (
    ALONE,
    FRESH,
    TAUGHT,
    TWICE,
    WIDE,
    Alive,
    Record,
    alive,
    get,
    kept,
    less,
    mean,
    of,
    paired,
    records,
    spread,
)
from benchmarks.robust.targets import once, share, targets

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


def least(values: Sequence[float | None]) -> str:
    """The worst of all seeds."""
    known = [v for v in values if v is not None]
    return f"{100 * min(known):.1f}" if known else "–"


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
    return markdown(header, lines)


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
    return markdown(["the attacker has", "accuracy left", "worst network of any seed"], lines)


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
    return markdown(header, lines)


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
    return markdown(["attack on row PGD", "accuracy left"], lines)


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
    return markdown(header, lines)


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
        f"**Robust and rotating** (MNIST, ε = 0.3; accuracy left; {len(data)} seeds).\n\n"
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
