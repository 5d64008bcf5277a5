"""The tables of docs/benchmarks/cluster.md, from the JSON of the simulation and of two hosts."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown, plus_minus

HEADER = (
    "how", "away", "all that are there have followed, s", "last stale answer after, s",
    "stale answers a rotation", "refused (503) a rotation",
)  # fmt: skip
DIGITS = {"followed_seconds": 2, "stale_until_seconds": 1, "stale_answers": 0, "refused": 0}


def table(results: dict[str, Any]) -> str:
    """Every case of the simulation."""
    lines = []
    for row in results["cases"]:
        cells = [row["name"], f"{row['away']:.0%}"]
        for key, digits in DIGITS.items():
            mean, _, high = row["found"][key]
            cells.append(f"{mean:,.{digits}f}" + plus_minus(high - mean, digits))
        lines.append(cells)
    return markdown(HEADER, lines)


def two_hosts(told: dict[str, Any]) -> str:
    """What happened to two hosts, against what is promised."""
    dies, parts, disk = (told[name] for name in ("coordinator_dies", "network_parts", "old_disk"))
    answers, lease = told["answers"], told["lease"]
    fell = sum(its["fell"] for its in answers.values())
    good = sum(
        its["by_status"].get("200", its["by_status"].get(200, 0)) for its in answers.values()
    )
    rows = [
        (f"answers asked for more than a lease ({lease:g} s) after their generation was retired",
         "0", f"{told['stale']['beyond_the_lease']} of {good:,}"),
        ("last answer from a retired generation, s after the commit", f"≤ {lease:g}",
         f"{told['stale']['latest_seconds']}"),
        ("times that the number of a replica fell", "0", fell),
        ("coordinator killed: generation before, and after it was started again", "the same",
         f"{dies['generation']}, {dies['generation_after']}"),
        ("coordinator killed: longest time without an answer, s", NOTHING,
         f"{max(dies['a_without_answers_s'], dies['b_without_answers_s']):.0f}"),
        (f"network gone for {parts['seconds']:.0f} s: who was cut off answered on for, s",
         f"≤ {lease:g}", f"{parts['b_answered_after_the_cut_for_s']}"),
        ("network gone: its refusals (503)", "> 0", parts["b_refused"]),
        ("network gone: the other host's failures", "0", parts["a_failed"]),
        ("network back: it answers again after, s", NOTHING, parts["b_answers_again_after_s"]),
        (f"old disk with {disk['old_generation']}, live {disk['live']}: its host answered from",
         f"≥ {disk['live']}", ", ".join(map(str, disk["b_answered_from"]))),
        ("private key or admin token on the host without the vault", "none",
         ", ".join(told["secrets_on_b"]) or "none"),
        (f"joined: {', '.join(told['strangers'])}", "none",
         ", ".join(kind for kind, said in told["strangers"].items() if said == "joined")
         or "none"),
    ]  # fmt: skip
    return markdown(TARGETS, rows)


def made() -> dict[str, str]:
    """Every table by the name of its mark."""
    tables = {"rollout.json": ("rollout", table), "two_hosts.json": ("two-hosts", two_hosts)}
    return {
        mark: write(json.loads((RESULTS / file).read_text("utf-8")))
        for file, (mark, write) in tables.items()
    }
