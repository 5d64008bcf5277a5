"""Reading `results.json`, which `g2d attack` wrote; knows no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from g2d.core.files import read_text
from g2d.core.types import Values
from g2d.errors import G2DError

UNATTACKED = (
    "attack = 'none': nothing attacked this model. Its generations were gated by distance and "
    "accuracy alone, and how often stale attacks work on them is not known."
)
"""The first line of whatever tells of a vault whose task has no attack."""

_MOST = 1 << 23  # bytes; a whole matrix is half a megabyte, and a service reads it, too
FORMAT = "g2d-redteam-1"


def results_path(vault: Path | str, out: Path | str | None = None) -> Path:
    """Where a vault's `results.json` lies."""
    return (Path(out) if out else Path(vault) / "redteam") / "results.json"


def read_results(path: Path) -> dict[str, Any]:
    """Read the results of a red team.

    Raises:
        G2DError: there are none, or the file is damaged or of another version.
    """
    try:
        results: dict[str, Any] = json.loads(read_text(path, _MOST, follow=False))
    except FileNotFoundError:
        raise G2DError(f"{path} is not there; run `g2d attack` first") from None
    except (OSError, ValueError, RecursionError) as error:
        raise G2DError(f"cannot read {path}: {error}; run `g2d attack` again") from error
    found = results.get("format") if isinstance(results, dict) else None
    if found != FORMAT:
        raise G2DError(
            f"{path} has format {found!r}, this g2d reads {FORMAT!r}; run `g2d attack` again"
        )
    return results


def unattacked(results: Values) -> str:
    """What a reader must know first of results where nothing attacked; "" of all others."""
    return UNATTACKED if str(results.get("attack", "")).startswith("attack = 'none'") else ""
