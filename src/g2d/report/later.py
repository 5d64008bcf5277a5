"""Kinds of rows that came after the first release: a page of older results says that they lack.

Else a reader would take a threat that nobody tried for one that won nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from g2d.core.types import Values
from g2d.report import matrix

SINCE = "0.2"
KINDS = {
    "adaptive": {"adaptive-inversion": "the owner who fits coordinates to answers"},
    "extraction": {"extraction-warm-transfer": "copies that begin at an exposed generation"},
    "query": {"query-square-margin": "a search that goes on after the first flip"},
}
"""By family: kinds that are measured since then, and what they are in words."""
DURABILITY = "what outlives up to five rotations"


def lacking(family: str, rows: Iterable[Values]) -> str:
    """What rows of a family on generated networks lack that is measured by now; "" for nothing.

    A row that says why it was not measured lacks nothing.
    """
    own = [row for row in rows if row["family"] == family and matrix.chain_of(row) == "generated"]
    kinds = {matrix.kind_of(row) for row in own}
    words = [text for kind, text in KINDS.get(family, {}).items() if kind not in kinds]
    if family == "query" and any(row["extra"].get("durable") for row in own):
        told = any("durability" in row["extra"] for row in own)
        words += [] if told else [DURABILITY]
    if not own or not words:
        return ""
    return f"Not measured in these results, but by g2d attack from {SINCE} on: {'; '.join(words)}."
