"""Tables of docs/threats.md and of a page for each family below docs/threats, from their JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import TARGETS, markdown, mean, ranged
from g2d.redteam.scoring import share
from g2d.report.matrix import chain_of, every_of

# What tells rows of one kind, target and metric apart (docs/results.md).
APART = ("exposed", "algorithm", "loss", "percent", "read", "answers", "scheme", "told")


def matched(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of all seeds that measure the same thing, in the order of the first seed."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for results in runs:
        for row in results["rows"]:
            apart = (row["extra"].get(key) for key in APART)
            measured = (row["family"], row["kind"], row["metric"])
            key = (*measured, chain_of(row), every_of(row), *apart)
            groups.setdefault(key, []).append(row)
    return list(groups.values())


def value(rows: Sequence[dict[str, Any]], key: str) -> str:
    """One column of matched rows."""
    return ranged([row[key]["value"] if row[key] else None for row in rows])


ALONE = {
    "adaptive-inversion"
}  # its attacker asks the live network, the others of its family do not
CLOCK = 1000  # queries from one rotation to the next
COLUMNS = (
    "target", "attacker", "attack", "measures", "value", "worst", "clean", "n", "scored on",
    "spent", "notes",
)  # fmt: skip


class Notes:
    """What is remarked on rows, each remark once; rows name them by number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cite(self, note: str) -> str:
        """The numbers of a row's remarks."""
        remarks = [part for part in note.split("; ") if part]
        found = [self._numbers.setdefault(part, len(self._numbers) + 1) for part in remarks]
        return ", ".join(map(str, found))

    def __str__(self) -> str:
        return "\n".join(f"{number}. {note}" for note, number in self._numbers.items())


def line(rows: Sequence[dict[str, Any]], notes: Notes) -> list[object]:
    """One line of a family's table: the same measurement of every seed."""
    first = rows[0]
    status = {row["status"] for row in rows} - {"ok"}
    shown = value(rows, "value") if any(row["value"] for row in rows) else ", ".join(sorted(status))
    spent = first["queries"] or first["gradient_steps"] or "–"
    return [
        first["target"], first["threat"], first["attack"], first["metric"], f"**{shown}**",
        value(rows, "worst"), value(rows, "clean_accuracy"), counts(rows), first["scored"], spent,
        notes.cite(first["note"]),
    ]  # fmt: skip


def counts(rows: Sequence[dict[str, Any]]) -> str:
    """How many examples a row counts for each network; from least to most where seeds differ."""
    n = sorted({row["value"]["n"] for row in rows if row["value"]})
    return f"{n[0]:,}–{n[-1]:,}" if len(n) > 1 else f"{n[0]:,}" if n else "–"


def family(groups: Sequence[Sequence[dict[str, Any]]]) -> str:
    """A family's table, and under it what is remarked on its rows."""
    notes = Notes()
    body = markdown(COLUMNS, [line(rows, notes) for rows in groups])
    return f"{body}\n\nNotes; numbers in them are of the first seed.\n\n{notes}"


def outlived(groups: Sequence[Sequence[dict[str, Any]]]) -> str:
    """What finds are worth after rotations, pooled over seeds; "" where no row has looked."""
    lines = []
    for rows in groups:
        points: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            for point in row["extra"].get("durability") or []:
                points.setdefault(point["rotations"], []).append(point)
        if points:
            told = [of_finds(points.get(count, [])) for count in range(1, 6)]
            lines.append([rows[0]["target"], rows[0]["attack"], *told])
    if not lines:
        return ""
    header = ("target", "attack", *(f"{count} rotations" for count in range(1, 6)))
    return (
        "\n\nFinds, as sent, that still flip after so many rotations, in percent, with the 95 % "
        f"interval of all seeds' finds together and their number.\n\n{markdown(header, lines)}"
    )


def of_finds(points: Sequence[dict[str, Any]]) -> str:
    """The share over the finds of all seeds, its Wilson interval, and how many finds."""
    n = sum(point["n"] for point in points)
    if not n:
        return "–"
    rate = share(round(sum(point["value"] * point["n"] for point in points)), n)
    return f"{100 * rate.value:.0f} ({100 * rate.low:.0f}–{100 * rate.high:.0f}), n {n}"


def tables(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Every table of the page by name."""
    groups = matched(runs)
    made = {"lines": told(runs)}
    made["threat-targets"] = targets(runs)
    for each in runs[0]["families"]:
        name, ids = each["name"], each["identifiers"]
        own = [rows for rows in groups if rows[0]["family"] == name]
        of_checks = any(rows[0]["metric"] == "check" for rows in own)
        body = (checks(own) if of_checks else family(own)) + outlived(own)
        cpu = sum(f["seconds"] for r in runs for f in r["families"] if f["name"] == name)
        made[name] = (
            f"*{each['question']}* {ids['atlas']} · {ids['nist']} · {ids['owasp']} · "
            f"{cpu / len(runs):.0f} CPU s a seed\n\n{body}"
        )
    made["runs"] = "\n".join(
        f"- seed {r['seed']}: {minutes(r):.1f} CPU minutes for {r['cases']} cases and the networks "
        f"they need, "
        f"{r['created']}, code {r['code'][:12]}"
        for r in runs
    )
    return made


def pick(
    runs: Sequence[dict[str, Any]],
    key: str,
    chain: str,
    algorithm: str = "",
    every: int | None = None,
) -> dict[str, Any]:
    """Mean over seeds of the attacker's best row of a kind, or of a family; `every`: the clock.

    A kind of `ALONE` counts for its family only where it is asked for by its own name.
    """
    best = []
    for results in runs:
        rows = [
            row
            for row in results["rows"]
            if (key == row["kind"] or (key == row["family"] and row["kind"] not in ALONE))
            and (chain_of(row), every_of(row)) == (chain, every)
            and row["value"]
            and (not algorithm or row["extra"].get("algorithm") == algorithm)
        ]
        if not rows:
            raise SystemExit(f"no row of {key} on {chain} {algorithm}".rstrip())
        best.append(max(rows, key=lambda row: row["value"]["value"]))
    worst = [row["worst"]["value"] for row in best if row["worst"]]
    return {
        "mean": f"{100 * mean([row['value']['value'] for row in best]):.0f} %",
        "worst": f"{100 * max(worst):.0f} %" if worst else "",
        "rows": best,
    }


def told(runs: Sequence[dict[str, Any]]) -> str:
    """The story on top of docs/threats.md: what rotation buys and what it does not."""
    lines = (
        "**Do attacks that were prepared on old parameters, or built up query by query, work on "
        "those that are live?**",
        f"MNIST, {len(runs)} vault{'s' * (len(runs) > 1)} of 40 rotations, L∞ ball of "
        f"ε = {runs[0]['eps']:g}; every row, with its controls, has a page below.",
        "",
        bought(runs),
        as_good(runs),
        not_bought(runs),
    )
    return "\n".join(lines)


def mean_of(
    runs: Sequence[dict[str, Any]],
    key: str,
    chain: str,
    algorithm: str = "",
    every: int | None = None,
) -> str:
    """The attacker's best row of a kind or family, mean over seeds."""
    return str(pick(runs, key, chain, algorithm, every)["mean"])


def durable(runs: Sequence[dict[str, Any]]) -> str:
    """Which share of query attacks' finds outlives a rotation, from attack to attack."""
    finds: dict[str, list[dict[str, Any]]] = {}
    for results in runs:
        for row in results["rows"]:
            known = (chain_of(row), every_of(row)) == ("generated", CLOCK)
            if known and row["extra"].get("durable"):
                finds.setdefault(row["kind"], []).append(row["extra"]["durable"])
    shares = [sum(d["value"] * d["n"] for d in f) / sum(d["n"] for d in f) for f in finds.values()]
    return f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"


def bought(runs: Sequence[dict[str, Any]]) -> str:
    """What rotation buys."""
    # Not the live network alone: one network a seed is luck (31 to 51 %).
    aged = pick(runs, "stale-age", "generated")["rows"]
    fresh = [row["extra"]["curve"][0]["value"] for row in aged]
    return (
        "- **What rotation buys: reuse pays less.** Attacks on exposed generations flip "
        f"{mean_of(runs, 'stale-single', 'generated', 'apgd')} of later ones' inputs if crafted "
        f"on one, {mean_of(runs, 'stale-joint', 'generated')} if crafted on several together, "
        f"{mean_of(runs, 'stale-tries', 'generated')} if twenty stored ones may all be tried; "
        f"{ranged(fresh, 0)} % on the generation they were crafted on, had it stayed; "
        f"{mean_of(runs, 'stale-age', 'frozen')} on the undefended base. Of what query "
        f"attacks find, {durable(runs)} outlives the next rotation, from attack to attack."
    )


def as_good(runs: Sequence[dict[str, Any]]) -> str:
    """What gives as much without rotation, or without a generator."""
    single, soups, noises = (
        pick(runs, "stale-single", chain, "apgd") for chain in ("generated", "soup", "noise")
    )
    costs = [r["chains"] for r in runs]
    dearer = mean([c["rival"]["cost"] / c["generated"]["cost"] for c in costs])
    return (
        "- **What gives as much.** Networks retrained on the same exposed attacks stand at "
        f"{mean_of(runs, 'stale-joint', 'rival')} under the joint attack (fresh proposals: "
        f"{mean_of(runs, 'stale-joint', 'draws')}) for {dearer:.0f} times the CPU time; plain "
        f"retraining at {mean_of(runs, 'stale-joint', 'retrained')}, on fewer exposed ones. "
        f"Most of the effect is the population's doing: soups of its members stand at "
        f"{soups['mean']} and members with noise at {noises['mean']} where generations stand at "
        f"{single['mean']} (worst network: {soups['worst']}, {noises['worst']}, "
        f"{single['worst']}). Bit flips that cost one "
        f"generation {mean_of(runs, 'bit-flips-own', 'generated')} of the test images cost the "
        f"next {mean_of(runs, 'bit-flips-next', 'generated')} and a mere permutation "
        f"{mean_of(runs, 'bit-flips-next', 'permuted')}: rotation adds nothing here."
    )


def not_bought(runs: Sequence[dict[str, Any]]) -> str:
    """What rotation does not buy, or makes worse."""
    white = pick(runs, "white-box-autoattack", "generated")
    never, often = (
        mean_of(runs, "query-square-clock", "generated", every=every) for every in (None, CLOCK)
    )
    held = mean_of(runs, "query-square-stale", "generated", every=CLOCK)
    return (
        f"- **What it does not buy.** AutoAttack on the live generation flips {white['mean']} "
        f"(worst generation {white['worst']}; undefended base "
        f"{mean_of(runs, 'white-box-autoattack', 'frozen')}: that difference comes from "
        f"training, not from rotation). Whoever owns the generator flips "
        f"{mean_of(runs, 'adaptive', 'generated')}. A query attack that knows the clock flips "
        f"{often} where parameters rotate every 1,000 queries, {held} if it starts from a stale "
        f"attack, and {never} where the same generation stays: rotation hands a patient attacker "
        f"more models to try. Bit flips found on five exposed generations cost unseen ones "
        f"{mean_of(runs, 'bit-flips-joint', 'generated')}."
    )


def minutes(results: dict[str, Any]) -> float:
    """CPU minutes of a run from nothing: its cases, and the networks that were made for it."""
    chains = results["chains"].items()
    made = sum(c["networks"] * (c["cost"] or 0) for name, c in chains if name != "generated")
    return float(results["seconds"]["cpu"] + made) / 60


def targets(runs: Sequence[dict[str, Any]]) -> str:
    """The targets of the issue that asked for this, and what was reached."""
    time = f"{mean([minutes(r) for r in runs]) / 2:.1f} min if two cores share the CPU time evenly"
    rows = [
        *of_parity(),
        *of_flips(runs),
        *of_queries(runs),
        (
            "adaptive EOT, best attacker", "as it is",
            f"{at(runs, 'adaptive', 'generated')}; frozen {at(runs, 'adaptive', 'frozen')}",
        ),
        ("the full matrix on two cores, from nothing", "≤ 20 min", time),
    ]  # fmt: skip
    return markdown(TARGETS, rows)


def at(runs: Sequence[dict[str, Any]], key: str, chain: str, every: int | None = None) -> str:
    """The attacker's best row of each seed: mean and range."""
    best = pick(runs, key, chain, every=every)["rows"]
    return ranged([row["value"]["value"] for row in best]) + " %"


def of_parity() -> list[tuple[str, str, str]]:
    """Our attacks beside the reference code's."""
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


def of_flips(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Bit flips that were found on one generation, on the next."""
    followed = pick(runs, "bit-flips-next", "generated")["rows"]
    enough = ranged([row["extra"]["lost_after_enough_flips"] for row in followed])
    return [
        (
            "bit flips found on t, applied to t+1: accuracy lost",
            "≤ 0.5 points; frozen falls to chance",
            f"{at(runs, 'bit-flips-next', 'generated')} (with no more flips than ruin "
            f"t: {enough} %); frozen {at(runs, 'bit-flips-next', 'frozen')}; random flips "
            f"{at(runs, 'bit-flips-random', 'generated')}; permuted "
            f"{at(runs, 'bit-flips-next', 'permuted')}",
        ),
        (
            "the same, weights stored in a secret order", "(a defender's option)",
            at(runs, "bit-flips-kept-secret-order", "generated"),
        ),
        *of_layout(runs),
    ]  # fmt: skip


def of_layout(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The same flips on networks as they are served; nothing of runs that are older."""
    kinds = {row["kind"] for results in runs for row in results["rows"]}
    if "bit-flips-layout-next" not in kinds:
        return []
    shown = {
        name: at(runs, f"bit-flips-layout-{name}", "generated")
        for name in ("next", "replica", "replica-plain", "random")
    }
    return [
        (
            "the same in the secret layout that is served, on t+1", "≤ 0.5 points",
            f"{shown['next']}; as many at random {shown['random']}",
        ),
        (
            "the same, on another replica of t", "≤ 0.5 points",
            f"{shown['replica']}; in a plain layout {shown['replica-plain']}",
        ),
    ]  # fmt: skip


def of_queries(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Query attacks under rotation."""
    return [
        (
            "Square, 5,000 queries, rotation every 1,000: ASR", "≤ half of frozen",
            f"ART's {at(runs, 'query-square', 'generated', CLOCK)}, ours, which knows the clock, "
            f"{at(runs, 'query-square-clock', 'generated', CLOCK)}; frozen "
            f"{at(runs, 'query-square-clock', 'frozen')}; never rotating "
            f"{at(runs, 'query-square', 'generated')} and "
            f"{at(runs, 'query-square-clock', 'generated')}",
        ),
        (
            "the same, from a stale start", "(an attacker's option)",
            at(runs, "query-square-stale", "generated", CLOCK),
        ),
    ]  # fmt: skip


def checks(groups: Sequence[Sequence[dict[str, Any]]]) -> str:
    """The sanity checks: how many seeds passed, and what the first found."""
    lines = [
        [
            f"{rows[0]['threat']} ({rows[0]['target']})",
            f"{sum(bool(row['extra'].get('passed')) for row in rows)} of {len(rows)}",
            rows[0]["note"],
        ]
        for rows in groups
    ]
    return markdown(("check", "seeds passed", "found"), lines)


def records() -> list[dict[str, Any]]:
    """Every seed's results."""
    return [json.loads(p.read_text()) for p in sorted(RESULTS.glob("threats-mnist-seed*.json"))]


def made() -> dict[str, str]:
    """Every table by the name of its mark."""
    return tables(records())
