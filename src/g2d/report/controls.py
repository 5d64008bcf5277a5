"""The controls that decide whether to buy: what a plain retraining gives, and for how much.

Read from `results.json` as plain values; what is not in there was not measured, and is said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from g2d.core.types import Values

NOT_MEASURED = "not measured"
CONTROLS = {
    "draws": "next generation",
    "hardened": "hardened retraining (FGSM at eps/2, same seed and data)",
    "rival": "retraining on the exposed attacks",
}
"""What could be live next, by its chain: all meet the same attacks, made on exposed generations."""
KINDS = {"stale-single": "stale ASR, one exposed", "stale-joint": "stale ASR, several exposed"}
TITLES = ("instead of what is live", *KINDS.values(), "clean accuracy", "CPU s each")


def controls(results: Values | None) -> list[dict[str, str]]:
    """A row for each control, all with the keys `TITLES`; None: nothing was attacked yet.

    A cell takes the strongest attack of its kind, with n and the 95 % interval.
    """
    rows: Sequence[Values] = results.get("rows", ()) if results else ()
    chains: Values = results.get("chains", {}) if results else {}
    found = []
    for chain, name in CONTROLS.items():
        own = [r for r in rows if r.get("chain") == chain and r.get("kind") in KINDS and r["value"]]
        cells = {}
        for kind, title in KINDS.items():
            of_kind = [row["value"] for row in own if row["kind"] == kind]
            cells[title] = _rate(max(of_kind, key=lambda rate: float(rate["value"]), default=None))
        clean = [row["clean_accuracy"] for row in own if row["clean_accuracy"]]
        cost = chains.get(chain, {}).get("cost")
        found.append(
            {
                TITLES[0]: name,
                **cells,
                TITLES[3]: _rate(max(clean, key=lambda rate: float(rate["n"]), default=None)),
                TITLES[4]: NOT_MEASURED if cost is None else f"{float(cost):.1f}",
            }
        )
    return found


def measured(found: Sequence[dict[str, str]]) -> bool:
    """Whether anything of them was."""
    return any(cell != NOT_MEASURED for row in found for cell in list(row.values())[1:])


def _rate(rate: Any) -> str:
    if rate is None:
        return NOT_MEASURED
    value, low, high = (100 * float(rate[key]) for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}–{high:.1f}] of {int(rate['n'])}"
