"""Tables of docs/benchmarks/generation.md, deepweightflow.md and scale.md, from their JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import markdown, shown

ORDER = (
    "frozen", "pure permutation", "forks", "independent seeds", "retrained",
    "retrained, 938 steps", "retrained, hardened", "retrained fork",
    "noise on a member", "interpolation", "soup", "Gaussian in latent space",
    "diffusion unguided", "diffusion unguided, wide", "diffusion conditioned", "diffusion guided",
    "guided + polish",
)  # fmt: skip
ATTACKS = ("last", "joint_8", "joint_16", "worst_16")


def plain(values: Sequence[float | None], digits: int) -> str:
    """Mean over seeds of a plain number."""
    known = [v for v in values if v is not None and not math.isnan(v)]
    return f"{statistics.mean(known):.{digits}f}" if known else "–"


def runs() -> list[dict[str, Any]]:
    """Every seed's results."""
    return [json.loads(p.read_text()) for p in sorted(RESULTS.glob("generation-mnist-seed*.json"))]


def one_of(shares: Sequence[float]) -> str:
    """A share as `1/n`."""
    mean = statistics.mean(shares) if shares else 0.0
    if mean <= 0:
        return "–"
    return f"1/{1 / mean:.3g}" if mean > 1e-3 else "< 1/1000"


def shares(data: list[dict[str, Any]], name: str, of: str) -> list[float]:
    """CPU time of one way as a share of another's, for every seed that has both."""
    return [
        d["rows"][name]["cpu_seconds"] / d["rows"][of]["cpu_seconds"]
        for d in data
        if name in d["rows"] and of in d["rows"]
    ]


def even(data: list[dict[str, Any]], rival: str) -> str:
    """After how many rotations a rival at each has cost as much as generating, fits included."""
    found = []
    for d in data:
        if rival in d["rows"]:
            once = 2 * d["population_seconds"] + d["fit_seconds"]  # two workers, one fit
            dearer = d["rows"][rival]["cpu_seconds"] - d["rows"]["guided + polish"]["cpu_seconds"]
            found.append(once / dearer)
    return f"{min(found):.0f} to {max(found):.0f}"


def rows_of(data: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """One row of every seed that has it."""
    return [d["rows"][name] for d in data if name in d["rows"]]


def named(name: str, rows: Sequence[Any], data: Sequence[Any]) -> str:
    """A row's name, with the number of seeds where not all have it."""
    if len(rows) == len(data):
        return name
    return f"{name} ({len(rows)} seed{'s' * (len(rows) > 1)})"


def attacks(data: list[dict[str, Any]]) -> str:
    """Stale and white-box ASR of every way."""
    lines = []
    for name in ORDER:
        rows = rows_of(data, name)
        if not rows:
            continue
        line = [named(name, rows, data), shown([r["clean_mean"] for r in rows], 2)]
        line.append(f"{100 * min(r['clean_worst'] for r in rows):.2f}")
        strong, weak = ([r[f"eps_{eps}"] for r in rows] for eps in (0.2, 0.1))
        line += [shown([s.get(key) for s in strong]) for key in ATTACKS]
        line.append(shown([s["white_box"] for s in strong]))
        line += [shown([w.get(key) for w in weak]) for key in ("last", "joint_8", "joint_16")]
        line.append(shown([w["white_box"] for w in weak]))
        lines.append(line)
    header = [
        "next parameters", "clean", "worst", "last", "joint 8", "joint 16", "worst of 16",
        "white-box", "last, ε 0.1", "joint 8, ε 0.1", "joint 16, ε 0.1", "white-box, ε 0.1",
    ]  # fmt: skip
    return markdown(header, lines)


def shapes(data: list[dict[str, Any]]) -> str:
    """Distances, novelty, overlap of errors and cost of every way."""
    lines = []
    for name in ORDER:
        rows = rows_of(data, name)
        if not rows:
            continue
        cost = [r["cpu_seconds"] for r in rows]
        share = shares(data, name, "retrained")
        novelty = " / ".join(shown([r["novelty"][t] for r in rows], 0) for t in ("1", "2", "3"))
        lines.append([
            named(name, rows, data), plain([r["member_distance"] for r in rows], 3),
            plain([r["exposed_distance"] for r in rows], 3), novelty,
            shown([r["disagreement"] for r in rows], 2),
            plain([r["iou_wrong"] for r in rows], 2), plain(cost, 2),
            one_of(share),
        ])  # fmt: skip
    header = [
        "next parameters", "distance to nearest member", "to nearest exposed",
        "novelty at τ = 1 / 2 / 3, %", "disagreement, %", "IoU of errors", "CPU s each",
        "of one retraining",
    ]  # fmt: skip
    return markdown(header, lines)


def targets(data: list[dict[str, Any]]) -> str:
    """The issue's targets beside what was reached."""
    guided = rows_of(data, "guided + polish")
    rivals = rows_of(data, "retrained")
    base = [d["base"]["clean_mean"] for d in data]
    accuracies = [[a - b for a in g["clean_each"]] for g, b in zip(guided, base, strict=True)]
    strong = [g["eps_0.2"] for g in guided]
    rival = [r["eps_0.2"] for r in rivals]
    share = shares(data, "guided + polish", "retrained")
    collapse = rows_of(data, "collapse")
    count = sum(len(a) for a in accuracies)
    lines = [
        ["base test accuracy", "≥ 98.8 %", shown(base, 2)],
        [f"clean accuracy of {count} guided generations against the base, mean", "≥ −0.15 points",
         f"{100 * statistics.mean(a for each in accuracies for a in each):+.2f}"],
        ["the same, worst", "≥ −0.5 points", f"{100 * min(min(a) for a in accuracies):+.2f}"],
    ]  # fmt: skip
    for key, label, limit in (
        ("last", "last generation", 5), ("joint_8", "joint on last 8", 15),
        ("joint_16", "joint on last 16", 20), ("worst_16", "worst single of 16", 25),
    ):  # fmt: skip
        reached = shown([s[key] for s in strong])
        lines.append([f"stale ASR at ε = 0.2, {label}", f"≤ {limit} %",
                      f"{reached} (retrained: {shown([r[key] for r in rival])})"])  # fmt: skip
    lines += [
        ["CPU time of one accepted generation, of one fresh retraining", "≤ 1/10",
         one_of(share)],
        ["unguided samples under 90 %, of 300 a seed", "0",
         str(sum(c["collapsed"] for c in collapse))],
        ["population of 64 members, wall time on 2 cores", "≤ 15 min",
         plain([d["population_seconds"] / 60 for d in data], 1) + " min"],
        ["autoencoder + diffusion", "≤ 3 min",
         plain([d["fit_seconds"] / 60 for d in data], 1) + " min"],
        ["peak memory, parent + 2 workers", "≤ 2 GB",
         plain([d.get("population_peak_mib", 0) * 2**20 / 1e9 or None for d in data], 2) + " GB"],
    ]  # fmt: skip
    return markdown(["what", "target", "reached"], lines)


def cost(data: list[dict[str, Any]]) -> str:
    """What a generation costs in time and accuracy, in one paragraph."""
    guided, rivals = (rows_of(data, name) for name in ("guided + polish", "retrained"))
    base = [d["base"]["clean_mean"] for d in data]
    change = [a - b for g, b in zip(guided, base, strict=True) for a in g["clean_each"]]
    share = shares(data, "guided + polish", "retrained")
    fork = shares(data, "guided + polish", "retrained fork")

    def asr(rows: list[dict[str, Any]], key: str) -> str:
        return f"{100 * statistics.mean(r['eps_0.2'][key] for r in rows):.0f} %"

    return (
        f"**What it costs.** A generation takes {one_of(share)} of the CPU time of retraining "
        f"from a fresh seed on the same attacks (3,500 steps), and resists a joint attack on the "
        f"last sixteen about as well ({asr(guided, 'joint_16')} against "
        f"{asr(rivals, 'joint_16')}), the "
        f"worst single one of them less ({asr(guided, 'worst_16')} against "
        f"{asr(rivals, 'worst_16')}); a 600-step fork of the base is the cheaper rival "
        f"({one_of(fork)}). Clean accuracy changes by {100 * statistics.mean(change):+.2f} points, "
        f"at worst {100 * min(change):+.2f}, over {len(change)} generations. The population costs "
        f"{statistics.mean(d['population_seconds'] for d in data) / 60:.0f} minutes on two "
        f"cores, once: with the fits it has paid for itself after {even(data, 'retrained')} "
        f"rotations against retraining at each, after {even(data, 'retrained fork')} against the "
        "fork."
    )


def waves(data: list[dict[str, Any]]) -> str:
    """Accuracy, stale and white-box ASR by wave."""
    count = min(len(d["waves"]) for d in data)
    lines = [
        [label, *(shown([d["waves"][w][key] for d in data], digits) for w in range(count))]
        for key, label, digits in (
            ("clean", "clean accuracy, %", 2), ("stale", "stale ASR within the wave, %", 1),
            ("white_box", "white-box ASR, %", 1),
        )
    ]  # fmt: skip
    return markdown(["wave", *(str(w + 1) for w in range(count))], lines)


def sweep(data: list[dict[str, Any]]) -> str:
    """White-box ASR of the last generation against eps."""
    known = [d["sweep"] for d in data if "sweep" in d]
    if not known:
        return "Not measured yet."
    budgets = list(known[0]["white_box"])
    line = ["white-box ASR, %", *(shown([k["white_box"][e] for k in known]) for e in budgets)]
    patient = shown([k["white_box_100_steps"] for k in known])
    return markdown(["ε", *budgets], [line]) + f"\n\nAt ε = 0.2 with 100 steps: {patient} %."


def rig() -> str:
    """DeepWeightFlow's rig."""
    path = RESULTS / "deepweightflow.json"
    if not path.exists():
        return "Not measured yet."
    r = json.loads(path.read_text())
    lines = [
        ["members, accuracy", "96.30 ± 0.23",
         f"{100 * r['members']['mean']:.2f} ± {100 * r['members']['std']:.2f}"],
        ["generated, accuracy", "96.25 ± 0.29",
         f"{100 * r['generated']['mean']:.2f} ± {100 * r['generated']['std']:.2f}"],
        ["drop, points (target ≤ 0.05)", "0.05", f"{r['drop_points']:+.3f}"],
        ["one network (target ≤ 5 ms)", "5 ms", f"{r['milliseconds_each']:.1f} ms"],
        ["fit, one core (target ≤ 80 s)", "80 s", f"{r['fit_cpu_seconds']:.0f} s"],
        ["stale ASR between generated networks, ε 0.1 / 0.2", "80 / 98.8 %",
         " / ".join(f"{100 * v:.0f}" for v in r["stale_asr_between_generated"].values()) + " %"],
        ["distance to the nearest of 50 members, in members' own nearest distances", "–",
         f"{r['distance_to_nearest_of_50_members_in_units_of_their_own']:.2f}"],
    ]  # fmt: skip
    return markdown(["what", "DeepWeightFlow, its own code", "G2D"], lines)


def scale() -> str:
    """Time and memory against P."""
    path = RESULTS / "scale.json"
    if not path.exists():
        return "Not measured yet."
    lines = []
    for r in json.loads(path.read_text())["sizes"].values():
        seconds = r["cpu_seconds"]
        lines.append([
            f"{r['parameters']:,}", f"{seconds['codec_and_autoencoder']:.1f}",
            f"{seconds['diffusion']:.1f}", f"{1000 * seconds['sample_and_decode_each']:.0f}",
            f"{r['peak_mib']:,.0f}", "yes" if r["round_trip_exact"] else "no",
        ])  # fmt: skip
    header = [
        "P", "codec + autoencoder, CPU s", "diffusion, CPU s", "one network, ms", "peak MiB",
        "codec exact",
    ]  # fmt: skip
    return markdown(header, lines)


def machine(data: list[dict[str, Any]]) -> str:
    """Where and when."""
    seen = {json.dumps(d["hardware"], sort_keys=True) for d in data}
    lines = []
    for text in sorted(seen):
        h = json.loads(text)
        lines.append(", ".join(f"{key}: {value}" for key, value in h.items()))
    return "\n".join(f"- {line}" for line in lines)


def made() -> dict[str, str]:
    """Every table by the name of its mark."""
    data = runs()
    found = {"rig": rig(), "scale": scale(), "sweep": sweep(data)}
    if data and all("guided + polish" in d["rows"] for d in data):
        found |= {
            "generation-targets": targets(data), "attacks": attacks(data), "shapes": shapes(data),
            "machine": machine(data), "waves": waves(data), "cost": cost(data),
        }  # fmt: skip
    return found
