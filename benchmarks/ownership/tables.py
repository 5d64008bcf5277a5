"""Tables of docs/benchmarks/ownership.md, from whatever of the JSON is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.ownership import (
    asked,
    canaries,
    carried,
    layout,
    rivals,
    strength,
    tracing,
    verification,
)

Result = dict[str, Any]
Rows = Sequence[Sequence[object]]
SEEDS = 3


def _of_seeds(results: Sequence[Result]) -> list[str]:
    """Seeds of files that hold one each."""
    return [str(result["seed"]) for result in results]


def _within(results: Sequence[Result]) -> list[str]:
    """Seeds of a file that holds all of them."""
    return list(results[0]["seeds"])


def _traced(results: Sequence[Result]) -> list[str]:
    return [str(one["seed"]) for one in results[0]["vaults"]]


def _populations(results: Sequence[Result]) -> str:
    """How large the populations were."""
    sizes = {(r["population"]["members"], r["population"]["basins"]) for r in results}
    counts = {r["sizes"]["count"] for r in results}
    told = ", ".join(f"{members} members in {basins} basins" for members, basins in sorted(sizes))
    return f"{told}, {', '.join(map(str, sorted(counts)))} generations"


def _vaults(results: Sequence[Result]) -> str:
    """Where suspects were stolen from."""
    sizes = {(v["members"], v["basins"], v["generations"]) for v in results[0]["vaults"]}
    return ", ".join(f"{m} members in {b} basins, {g} generations" for m, b, g in sorted(sizes))


def _share(results: Sequence[Result]) -> str:
    shares = {r["sizes"]["share"] for r in results}
    return f"DAWN marks {', '.join(f'{share:.1%}' for share in sorted(shares))} of all queries"


class Table:
    """One table: its files, its rows, and what its line of facts says."""

    def __init__(
        self,
        pattern: str,
        rows: Callable[[Sequence[Result]], Rows],
        seeds: Callable[[Sequence[Result]], list[str]],
        about: Callable[[Sequence[Result]], str] = lambda _: "",
    ) -> None:
        self.pattern, self._rows, self._seeds, self._about = pattern, rows, seeds, about

    def text(self, folder: Path) -> str:
        """The table and a line on what made it; or that nothing was measured yet."""
        results = [
            json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(self.pattern))
        ]
        rows = self._rows(results) if results else ()
        if not rows:
            return markdown(TARGETS, [(f"`{self.pattern}`", NOTHING, "not measured yet")])
        seeds = self._seeds(results)
        facts = [f"Seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"]
        if len(seeds) < SEEDS:
            facts[0] += f" of {SEEDS}; the others are not measured yet"
        facts += [about] if (about := self._about(results)) else []
        facts.append(f"commit {', '.join(sorted({_commit(result) for result in results}))}")
        return f"{markdown(TARGETS, rows)}\n\n{'; '.join(facts)}."


def _commit(result: Result) -> str:
    """The commit that was measured, wherever a script notes it."""
    found = next((result[key] for key in ("measured", "run", "record") if key in result), result)
    known = found if isinstance(found, dict) and "commit" in found else result.get("run", result)
    return str(known.get("commit") or "unknown")


TABLES = {
    "ownership-carried": Table(
        "ownership-carried-mnist-seed*.json",
        lambda results: carried.lines([result["rows"] for result in results]),
        _of_seeds, _populations,
    ),
    "ownership-asked": Table(
        "ownership-asked.json", lambda results: asked.rows(results[0]), _within,
        lambda _: "vaults of commit 5f10d35, two sets of 64",
    ),
    "ownership-verification": Table(
        "ownership-verification.json",
        lambda results: verification.rows(results[0]) if results[0]["seeds"] else (), _within,
    ),
    "ownership-tracing": Table(
        "tracing.json",
        lambda results: tracing.rows(results[0]) if results[0]["cases"] else (),
        _traced, _vaults,
    ),
    "ownership-canaries": Table(
        "canaries.json",
        lambda results: canaries.rows(results[0]) if results[0]["seeds"] else (), _within,
    ),
    "ownership-layout": Table("layout-mnist-seed*.json", layout.lines, _of_seeds),
    "ownership-rivals": Table(
        "ownership-rivals-mnist-seed*.json", rivals.lines, _of_seeds, _share
    ),
}  # fmt: skip


def made(folder: Path = RESULTS) -> dict[str, str]:
    """Every table by the name of its mark."""
    found = {name: table.text(folder) for name, table in TABLES.items()}
    return found | {"ownership-strength": strength.table(folder)}
