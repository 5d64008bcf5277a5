"""What the last red team found, for the page: a file that `g2d attack` wrote, in few words.

Read when it is asked for and has changed on disk. Measures nothing; knows no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from g2d.core.types import Values
from g2d.errors import G2DError
from g2d.report.matrix import OK, Line, matrix, measured, ordered
from g2d.report.results import read_results

_LOOK = 10.0  # seconds between looks at the file
_BESIDE = ("generated", "unrotated", "frozen", "retrained", "soup", "noise")  # side by side


class Findings:
    """One results file, which may not be there yet and may be replaced at any time."""

    def __init__(
        self, path: Path | None, now: Callable[[], float] = time.monotonic, every: float = _LOOK
    ) -> None:
        self._path, self._now, self._every = path, now, every
        self._seen: tuple[float, str | None] = (float("-inf"), None)
        self._kept: tuple[str, dict[str, Any]] = ("", {})
        self._reading = threading.Lock()

    def version(self) -> str | None:
        """What changes when the file does; None: there is none. Looks at most every 10 s."""
        at, seen = self._seen
        if self._path is not None and self._now() - at >= self._every:
            try:
                found = self._path.lstat()
                seen = f"{found.st_mtime_ns:x}-{found.st_size:x}"
            except OSError:
                seen = None
            self._seen = (self._now(), seen)
        return seen

    def read(self) -> dict[str, Any] | None:
        """Return the findings; None: there are none; `error` alone: they cannot be read."""
        version = self.version()
        if self._path is None or version is None:
            return None
        with self._reading:
            if self._kept[0] != version:
                self._kept = (version, _compact(self._path))
            return self._kept[1]


def _compact(path: Path) -> dict[str, Any]:
    try:
        return compact(read_results(path))
    except G2DError as error:
        return {"error": str(error)}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return {
            "error": f"{path} is not what `g2d attack` writes ({type(error).__name__}: {error})"
        }


def compact(results: Values) -> dict[str, Any]:
    """Return what the page shows of `results.json` (docs/results.md): some 100 bytes a row."""
    rows = [row for row in ordered(results["rows"]) if row["metric"] != "check"]
    checks = [row for row in results["rows"] if row["metric"] == "check"]
    titles = {f["name"]: f["title"] for f in results["families"]}
    service = results.get("service")
    return {
        **{key: results[key] for key in ("created", "quick", "task", "n", "eps")},
        "generations": sorted(map(int, results["vault"]["generations"])),
        "service": service["url"] if service else None,
        "distrust": sum(not _passed(row) for row in checks),
        "best": _best(matrix(rows), titles),
        "rows": [_row(row) for row in rows],
    }


def _passed(row: Values) -> bool:
    return row["status"] == OK and row["extra"].get("passed") is True


def _row(row: Values) -> dict[str, Any]:
    same = {key: str(row[key]) for key in ("threat", "target", "attack", "metric", "status")}
    return same | {"value": row["value"] if measured(row) else None}


def _best(lines: Sequence[Line], titles: Values) -> list[dict[str, Any]]:
    """The line of each family that wins most from the generated chain while it rotates.

    And, if that was not tried on a frozen model, the one that wins most among those that were.
    """
    found = []
    for family, title in titles.items():
        own = [line for line in lines if line.family == family and _harm(line) >= 0]
        own = [line for line in own if not line.still] or own
        beside = [line for line in own if line.best("frozen")]
        best = [max(some, key=_harm) for some in (own, beside) if some]
        if len(best) == 2 and best[0] is best[1]:
            best.pop()
        found += [{"title": title, "name": x.name, "cells": _cells(x)} for x in best]
    return found


def _harm(line: Line) -> float:
    """What a line's attacker wins from the generated chain; below 0: nothing was measured."""
    row = line.best("generated")
    return -1.0 if row is None or row["harm"] is None else float(row["harm"])


def _cells(line: Line) -> dict[str, Any]:
    rows = {name: line.best(name) for name in _BESIDE}
    return {name: row["value"] | {"harm": row["harm"]} for name, row in rows.items() if row}
