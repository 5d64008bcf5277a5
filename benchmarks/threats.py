"""The red team's full matrix on MNIST, for the vaults of benchmarks/generation.py.

    python benchmarks/threats.py --data ../shared/data/mnist --seeds 0 1 2
    python benchmarks/threats.py --tables

Attacks `runs/mnist-<seed>` (make them with `benchmarks/generation.py` first) as `g2d attack` does,
writes benchmarks/results/threats-mnist-seed<seed>.json and fills the tables of docs/threats.md.
Goes on where it stopped; about 25 minutes a seed on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from g2d import redteam
from g2d.cli.console import show_progress
from g2d.report import page as report
from measure import save

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "threats.md"
README = ROOT / "README.md"


def run(seed: int, data: str, workers: int) -> None:
    """Attack one vault; keep its rows, and its page beside the vault."""
    vault = ROOT / "runs" / f"mnist-{seed}"
    out = ROOT / "runs" / f"redteam-{seed}"
    with show_progress() as progress:
        results = redteam.attack(
            vault, seed=seed, out=out, data=data, workers=workers, progress=progress
        )
    report.render_results(results, out / "report.html")
    results["summary"] = None  # pictures of the page; the rows are the evidence
    results["vault"]["path"] = str(vault.relative_to(ROOT))
    save(RESULTS / f"threats-mnist-seed{seed}.json", results)


def share(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean over seeds, and the range where there are several; in percent."""
    known = [100 * v for v in values if v is not None]
    if not known:
        return "–"
    mean = sum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(known):.{digits}f}–{max(known):.{digits}f})"


# What tells rows of one kind, target and metric apart (docs/results.md).
APART = ("exposed", "algorithm", "loss", "percent", "read")


def matched(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of all seeds that measure the same thing, in the order of the first seed."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for results in runs:
        for row in results["rows"]:
            apart = (row["extra"].get(key) for key in APART)
            key = (row["family"], row["kind"], row["target"], row["metric"], *apart)
            groups.setdefault(key, []).append(row)
    return list(groups.values())


def value(rows: Sequence[dict[str, Any]], key: str) -> str:
    """One column of matched rows."""
    return share([row[key]["value"] if row[key] else None for row in rows])


def line(rows: Sequence[dict[str, Any]]) -> str:
    """One line of a family's table."""
    first = rows[0]
    status = {row["status"] for row in rows} - {"ok"}
    shown = value(rows, "value") if any(row["value"] for row in rows) else ", ".join(sorted(status))
    n = first["value"]["n"] if first["value"] else "–"
    spent = first["queries"] or first["gradient_steps"] or "–"
    cells = [
        first["target"], first["threat"], first["attack"], first["metric"], f"**{shown}**",
        value(rows, "worst"), value(rows, "clean_accuracy"), n, first["scored"], spent,
        first["note"],
    ]  # fmt: skip
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


COLUMNS = (
    "target", "attacker", "attack", "measures", "value", "worst", "clean", "n", "scored on",
    "spent", "note",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def tables(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Every table of the page by name."""
    groups = matched(runs)
    made = {"lines": told(runs, "all rows, intervals and controls are below.")}
    made["targets"] = targets(runs)
    for family in runs[0]["families"]:
        name, ids = family["name"], family["identifiers"]
        own = [rows for rows in groups if rows[0]["family"] == name]
        of_checks = any(rows[0]["metric"] == "check" for rows in own)
        body = checks(own) if of_checks else "\n".join(line(rows) for rows in own)
        head = "| check | seeds passed | found |\n|---|---|---|" if of_checks else HEAD
        cpu = sum(f["seconds"] for r in runs for f in r["families"] if f["name"] == name)
        made[name] = (
            f"*{family['question']}* {ids['atlas']} · {ids['nist']} · {ids['owasp']} · "
            f"{cpu / len(runs):.0f} CPU s a seed\n\n{head}\n{body}"
        )
    made["runs"] = "\n".join(
        f"- seed {r['seed']}: {minutes(r):.1f} CPU minutes for {r['cases']} cases and the networks "
        f"they need, "
        f"{r['created']}, code {r['code'][:12]}"
        for r in runs
    )
    return made


def pick(
    runs: Sequence[dict[str, Any]], key: str, target: str, algorithm: str = ""
) -> dict[str, Any]:
    """Mean over seeds of the attacker's best row of a kind, or of a family."""
    best = []
    for results in runs:
        rows = [
            row
            for row in results["rows"]
            if key in (row["kind"], row["family"])
            and row["target"] == target
            and row["value"]
            and (not algorithm or row["extra"].get("algorithm") == algorithm)
        ]
        if not rows:
            raise SystemExit(f"no row of {key} on {target} {algorithm}".rstrip())
        best.append(max(rows, key=lambda row: row["value"]["value"]))
    worst = [row["worst"]["value"] for row in best if row["worst"]]
    return {
        "mean": f"{100 * mean([row['value']['value'] for row in best]):.0f} %",
        "worst": f"{100 * max(worst):.0f} %" if worst else "",
        "rows": best,
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def told(runs: Sequence[dict[str, Any]], link: str) -> str:
    """The lines on top: what rotation buys and what it does not."""

    def of(key: str, chain: str) -> str:
        return str(pick(runs, key, chain)["mean"])

    single, soups, noises = (
        pick(runs, "stale-single", chain, "apgd") for chain in ("generated", "soup", "noise")
    )
    white = pick(runs, "white-box-autoattack", "generated")
    clocks = ("no rotation", "a rotation every 1,000 queries")
    never, often = (pick(runs, "query-square-clock", f"generated, {c}") for c in clocks)
    held = of("query-square-stale", f"generated, {clocks[1]}")
    finds = [d for row in often["rows"] if (d := row["extra"]["durable"])]
    kept = sum(d["value"] * d["n"] for d in finds) / sum(d["n"] for d in finds)
    # Not the live network alone: one network a seed is luck (31 to 51 %).
    aged = pick(runs, "stale-age", "generated")["rows"]
    fresh = [row["extra"]["curve"][0]["value"] for row in aged]
    costs = [r["chains"] for r in runs]
    dearer = mean([c["rival"]["cost"] / c["generated"]["cost"] for c in costs])
    lines = (
        "**Do attacks that were prepared on old parameters, or built up query by query, work on "
        "those that are live?**",
        f"MNIST, {len(runs)} vault{'s' * (len(runs) > 1)} of 40 rotations, L∞ ball of "
        f"ε = {runs[0]['eps']:g}; {link}",
        "",
        "- **What rotation buys: reuse stops paying.** Attacks on exposed generations flip "
        f"{single['mean']} of later ones' inputs if crafted on one, "
        f"{of('stale-joint', 'generated')} if crafted on several together, "
        f"{of('stale-tries', 'generated')} if twenty stored ones may all be tried; "
        f"{share(fresh, 0)} % on the generation they were crafted on, had it stayed; "
        f"{of('stale-age', 'frozen')} on the undefended base. A find of a query attack "
        f"outlives the next rotation in {100 * kept:.0f} % of the cases. Bit flips that cost one "
        f"generation {of('bit-flips-own', 'generated')} of "
        f"the test images cost the next {of('bit-flips-next', 'generated')}.",
        "- **What gives as much.** Networks retrained on the same exposed attacks stand at "
        f"{of('stale-joint', 'rival')} under the joint attack (fresh proposals: "
        f"{of('stale-joint', 'draws')}) for {dearer:.0f} times the CPU time; plain retraining "
        f"at {of('stale-joint', 'retrained')}. Most of the effect is the population's doing: "
        f"soups of its members stand at {soups['mean']} and members with noise at "
        f"{noises['mean']} where generations stand at {single['mean']} (worst "
        f"network: {soups['worst']}, {noises['worst']}, {single['worst']}).",
        "- **What it does not buy.** AutoAttack on the live generation flips "
        f"{white['mean']} (worst generation {white['worst']}; undefended base "
        f"{of('white-box-autoattack', 'frozen')}: that difference comes from training, not from "
        f"rotation). Whoever owns the generator flips {of('adaptive', 'generated')}. A query "
        f"attack that knows the clock flips {often['mean']} where parameters rotate every 1,000 "
        f"queries, {held} if it starts from a stale attack, and {never['mean']} where the same "
        "generation stays: rotation hands a patient attacker more models to try. Bit flips found "
        f"on five exposed generations cost unseen ones {of('bit-flips-joint', 'generated')}.",
    )
    return "\n".join(lines)


def minutes(results: dict[str, Any]) -> float:
    """CPU minutes of a run from nothing: its cases, and the networks that were made for it."""
    chains = results["chains"].items()
    made = sum(c["networks"] * (c["cost"] or 0) for name, c in chains if name != "generated")
    return float(results["seconds"]["cpu"] + made) / 60


def parity_rows() -> list[tuple[str, str, str]]:
    """Our attacks beside those of the libraries that others use."""
    parity = json.loads((RESULTS / "attack_parity.json").read_text())["rows"]
    apart = max(row["pgd"]["points_apart"] for row in parity)
    ratios = [row["pgd"]["art_over_ours"] for row in parity]
    floor = [row["pgd"]["ours_over_floor"] for row in parity]
    differ = sum(row["autoattack"]["images_that_differ"] for row in parity)
    judged = sum(row["autoattack"]["n"] for row in parity)

    return [
        ("our PGD against ART's, ASR", "within 1 point", f"at most {apart:.2f} points apart"),
        (
            "our PGD against ART's, time", "≥ 5 times faster",
            f"{min(ratios):.2f} to {max(ratios):.2f} times; ours takes {min(floor):.2f} to "
            f"{max(floor):.2f} times the bare forward and backward passes",
        ),
        (
            "AutoAttack through our runner against a direct call", "same for every image",
            f"{differ} of {judged} images differ",
        ),
    ]  # fmt: skip


def targets(runs: Sequence[dict[str, Any]]) -> str:
    """The targets of the issue that asked for this, and what was reached."""

    def at(key: str, chain: str) -> str:
        best = pick(runs, key, chain)["rows"]
        return share([row["value"]["value"] for row in best]) + " %"

    followed = pick(runs, "bit-flips-next", "generated")["rows"]
    enough = share([row["extra"]["lost_after_enough_flips"] for row in followed])
    thousand = "a rotation every 1,000 queries"
    rows = [
        *parity_rows(),
        (
            "bit flips found on t, applied to t+1: accuracy lost",
            "≤ 0.5 points; frozen falls to chance",
            f"{at('bit-flips-next', 'generated')} (with no more flips than ruin t: "
            f"{enough} %); frozen "
            f"{at('bit-flips-next', 'frozen')}; random flips "
            f"{at('bit-flips-random', 'generated')}; permuted "
            f"{at('bit-flips-next', 'permuted')}",
        ),
        (
            "the same, weights stored in a secret order", "(a defender's option)",
            at("bit-flips-kept-secret-order", "generated"),
        ),
        (
            "Square, 5,000 queries, rotation every 1,000: ASR", "≤ half of frozen",
            f"ART's {at('query-square', f'generated, {thousand}')}, ours, which knows the "
            f"clock, {at('query-square-clock', f'generated, {thousand}')}; frozen "
            f"{at('query-square-clock', 'frozen, no rotation')}; never rotating "
            f"{at('query-square', 'generated, no rotation')} and "
            f"{at('query-square-clock', 'generated, no rotation')}",
        ),
        (
            "the same, from a stale start", "(an attacker's option)",
            at("query-square-stale", f"generated, {thousand}"),
        ),
        (
            "adaptive EOT, best attacker", "as it is",
            f"{at('adaptive', 'generated')}; frozen {at('adaptive', 'frozen')}",
        ),
        (
            "the full matrix on two cores, from nothing", "≤ 20 min",
            f"{mean([minutes(r) for r in runs]) / 2:.1f} min if two cores share the CPU time "
            "evenly",
        ),
    ]  # fmt: skip
    body = "\n".join(f"| {what} | {wanted} | {got} |" for what, wanted, got in rows)
    return f"| what | target | reached |\n|---|---|---|\n{body}"


def checks(groups: Sequence[Sequence[dict[str, Any]]]) -> str:
    """The sanity checks: how many seeds passed, and what the first found."""
    return "\n".join(
        f"| {rows[0]['threat']} ({rows[0]['target']}) | "
        f"{sum(bool(row['extra'].get('passed')) for row in rows)} of {len(rows)} | "
        f"{rows[0]['note']} |"
        for rows in groups
    )


def fill() -> None:
    """Put the tables between their marks in docs/threats.md."""
    runs = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("threats-mnist-seed*.json"))]
    text = PAGE.read_text("utf-8")
    for name, table in tables(runs).items():
        mark = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
        filled = f"<!-- {name} -->\n\n{table}\n\n<!-- /{name} -->"
        text = mark.sub(lambda _, filled=filled: filled, text)
    PAGE.write_text(text, "utf-8")
    top = f"<!-- lines -->\n\n{told(runs, '[all rows](docs/threats.md).')}\n\n<!-- /lines -->"
    mark = re.compile("<!-- lines -->.*?<!-- /lines -->", re.DOTALL)
    README.write_text(mark.sub(lambda _: top, README.read_text("utf-8")), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="folder of MNIST's idx files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--tables", action="store_true", help="only make the tables")
    args = parser.parse_args()
    if not args.tables:
        for seed in args.seeds:
            run(seed, args.data, args.workers)
    fill()


if __name__ == "__main__":
    main()
