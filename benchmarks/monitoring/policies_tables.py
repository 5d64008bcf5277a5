"""The table of targets of `benchmarks.monitoring.policies`, from what it has measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown, mean
from g2d.redteam.policies.schemes import NAMES, WATCHED
from g2d.redteam.scoring import difference, share

Rows = Mapping[str, Any]
"""A seed's rows by name, as the red team writes them."""

_SEARCHES = {
    "clock": "Square that knows the clock",
    "margin": "margin-maximising Square",
    "accounts-5": "Square, 5 accounts",
    "accounts-20": "Square, 20 accounts",
    "inferred": "Square that infers the clock",
}
SCHEMES = (*NAMES, WATCHED)
_TOLD = {"rounded": "rounded", "aaa": "AAA", "label": "labels only"}


def lines(found: Sequence[Rows]) -> list[tuple[str, str, str]]:
    """Every line that something was measured for: what, target, reached; percent, all seeds."""
    made = []
    for attacker, words in _SEARCHES.items():
        for scheme in SCHEMES:
            wanted = "printed"
            if attacker == "clock" and scheme.startswith("sticky"):
                wanted = "≤ never rotating, minus the interval"
            made.append((f"{words}: {scheme}", wanted, won(found, attacker, scheme)))
    for told, words in _TOLD.items():
        for scheme in ("never", "global", "sticky", "sticky-pinned"):
            name = f"{_SEARCHES['clock']}: {scheme}, {words}"
            made.append((name, "printed", won(found, "clock", scheme, told)))
    for scheme in ("never", "global", "sticky", "sticky-pinned"):
        made.append((f"HopSkipJump: {scheme}", "printed", won(found, "labels", scheme, "label")))
    for scheme in SCHEMES:
        wanted = "≤ 7 with its interval" if scheme.startswith("sticky") else "printed"
        for when, words in (
            ("", "at once"), ("replayed_next", "after the next rotation"),
            ("replayed_gone", "when what was live has gone"),
        ):  # fmt: skip
            text = worth(found, scheme, "replayed", when)
            made.append((f"a find replayed on other clients, {words}: {scheme}", wanted, text))
    for scheme in NAMES:
        text = (
            f"{worth(found, scheme, 'again', '')}; any {worth(found, scheme, 'again', 'later_any')}"
        )
        made.append((f"a find sent again in later periods, any of ten: {scheme}", "printed", text))
    made += votes(found) + watched(found)
    return [line for line in made if NOTHING not in line[2][:1]]


def made() -> dict[str, str]:
    """Every table by the name of its mark; none where nothing is committed."""
    results = [json.loads(path.read_text("utf-8"))
               for path in sorted(RESULTS.glob("policies-mnist-seed*.json"))]  # fmt: skip
    if not results:
        return {}
    table = markdown(TARGETS, lines([result["rows"] for result in results]))
    return {"policy-targets": f"{table}\n\n{facts(results)}"}


def facts(results: Sequence[Mapping[str, Any]]) -> str:
    """What was measured: seeds, images, queries, commits."""
    seeds = ", ".join(str(result["seed"]) for result in results)
    sizes = sorted({(s["images"], s["budget"]) for s in (result["sizes"] for result in results)})
    told = ", ".join(f"{images} images, {budget:,} queries each" for images, budget in sizes)
    commits = ", ".join(sorted({result["measured"]["commit"] for result in results}))
    return f"Seed{'s' * (len(results) > 1)} {seeds}; {told}; commit {commits}."


def searches(
    found: Sequence[Rows], attacker: str, scheme: str, told: str
) -> dict[int, dict[str, Any]]:
    """The first row of a case, of each seed that has it, by the seed's place."""
    name = f"{attacker}, {scheme}, {told}"
    rows = {place: seed[name][0] for place, seed in enumerate(found) if name in seed}
    return {place: row for place, row in rows.items() if row["value"] is not None}


def won(found: Sequence[Rows], attacker: str, scheme: str, told: str = "scores") -> str:
    """ASR of all seeds' images together, and how much more it is than never rotating's.

    Intervals count images; what single seeds reached tells how much hangs on their networks.
    """
    ours = _flips(found, attacker, scheme, told)
    if not ours:
        return NOTHING
    first = torch.cat(list(ours.values()))
    text = rated(int(first.sum()), len(first))
    if len(ours) > 1:
        each = [100 * float(one.double().mean()) for one in ours.values()]
        text += f", of single seeds {min(each):.1f} to {max(each):.1f}"
    still = _flips(found, attacker, "never", told)
    if scheme == "never" or not ours.keys() <= still.keys():
        return text
    if scheme == WATCHED:  # the first images of each seed alone
        still = {place: flips[: len(ours[place])] for place, flips in still.items()
                 if place in ours}  # fmt: skip
    if any(len(still[place]) != len(one) for place, one in ours.items()):
        return text
    other = torch.cat([still[place] for place in ours])
    more = difference(first, other)
    return (
        f"{text}; never rotating {100 * float(other.double().mean()):.1f}, difference "
        f"{100 * more.value:+.1f} ({100 * more.low:+.1f} to {100 * more.high:+.1f})"
    )


def _flips(found: Sequence[Rows], attacker: str, scheme: str, told: str) -> dict[int, torch.Tensor]:
    """Which images of each seed were won."""
    rows = searches(found, attacker, scheme, told)
    return {place: torch.tensor(row["extra"]["first"]) > 0 for place, row in rows.items()}


def worth(found: Sequence[Rows], scheme: str, what: str, key: str) -> str:
    """A share of the finds of the Square that knows the clock; its interval counts finds."""
    place = {"again": 1, "replayed": 2}[what]
    name = f"clock, {scheme}, scores"
    rows = [seed[name][place] for seed in found if len(seed.get(name, ())) > place]
    rates = [row["extra"].get(key) if key else row["value"] for row in rows]
    known = [rate for rate in rates if rate]
    n = sum(rate["n"] for rate in known)
    return rated(sum(rate["value"] * rate["n"] for rate in known), n) if n else NOTHING


def votes(found: Sequence[Rows]) -> list[tuple[str, str, str]]:
    """Votes under every attack, beside one network."""
    made = []
    for scheme in ("vote-3", "vote-5"):
        rows = [row for seed in found for row in seed.get(f"vote, {scheme}, scores", ())]
        for kind in dict.fromkeys(row["kind"] for row in rows if row["value"]):
            same = [row for row in rows if row["kind"] == kind and row["value"]]
            value = mean([row["value"]["value"] for row in same])
            alone = mean([row["extra"]["one_network"]["value"] for row in same])
            flips, other = (
                torch.tensor([flag for row in same for flag in row["extra"][key]]).double()
                for key in ("flips", "flips_alone")
            )
            more = difference(flips, other)
            name = kind.removeprefix("policy-vote-")
            target = "printed"
            if name == "union":
                target = "ahead of one network by ≥ 5 points, or said not to be"
            text = (
                f"{100 * value:.1f}; one network {100 * alone:.1f}, difference of all images "
                f"{100 * more.value:+.1f} ({100 * more.low:+.1f} to {100 * more.high:+.1f}); "
                f"{same[0]['extra']['forward_passes']} forward passes an answer"
            )
            made.append((f"{scheme}, {name}", target, text))
    return made


def watched(found: Sequence[Rows]) -> list[tuple[str, str, str]]:
    """How many are seen before their first success, where the monitor of queries watches."""
    made = []
    for attacker, words in _SEARCHES.items():
        rows = [row["extra"] for row in searches(found, attacker, WATCHED, "scores").values()]
        if not rows:
            continue
        n = sum(row["seen_before"]["n"] for row in rows)
        early = sum(row["seen_before"]["value"] * row["seen_before"]["n"] for row in rows)
        middle = [row["seen_at"] for row in rows if "seen_at" in row]
        text = f"{rated(early, n)} of {n} seen or successful"
        if middle:
            text += f"; half of the seen by query {mean(middle):.0f}"
        made.append((f"{words}: seen before success", "printed", text))
    return made


def rated(successes: float, n: int) -> str:
    """A share in percent with its 95 % Wilson interval."""
    rate = share(successes, n)
    return f"{100 * rate.value:.1f} ({100 * rate.low:.1f}–{100 * rate.high:.1f})"
