"""How a number and a table are written, and how tables get into the pages.

A table stands between `<!-- name -->` and `<!-- /name -->` and is replaced in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.common.measure import interval
from benchmarks.common.places import DOCS, ROOT

NOTHING = "–"
TARGETS = ("what", "target", "reached")
MARK = re.compile(r"<!-- (?P<name>[\w-]+) -->\n.*?<!-- /(?P=name) -->", re.DOTALL)


def markdown(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    rows = [[str(cell).replace("|", "\\|") for cell in line] for line in (header, *lines)]
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(header), *body])


def shown(values: Sequence[float | None], digits: int = 1, scale: float = 100.0) -> str:
    """`mean ± half width of the 95 % interval`; two seeds give both values, none a dash."""
    known = [v for v in values if v is not None]
    if len(known) == 2:  # a t-interval of two is wider than the scale
        return ranged(known, digits, scale)
    if not known:
        return NOTHING
    mean, _, high = interval([scale * v for v in known])
    return f"{mean:,.{digits}f}" + plus_minus(high - mean, digits) * (len(known) > 1)


def plus_minus(half: float, digits: int) -> str:
    """The second part of `mean ± half width`."""
    return f" ± {half:,.{digits}f}"


def ranged(values: Sequence[float | None], digits: int = 1, scale: float = 100.0) -> str:
    """`mean (least–largest)`; one value stands alone, none is a dash."""
    known = [scale * v for v in values if v is not None]
    if not known:
        return NOTHING
    text = f"{sum(known) / len(known):.{digits}f}"
    if len(known) == 1:
        return text
    return f"{text} ({min(known):.{digits}f}–{max(known):.{digits}f})"


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def pages() -> list[Path]:
    """Every page that may hold a table."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def fill(blocks: Mapping[str, str]) -> set[str]:
    """Put blocks between their marks, in every page; return the names that a page holds."""
    found: set[str] = set()

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in blocks:
            return match[0]
        found.add(name)
        return f"<!-- {name} -->\n\n{blocks[name]}\n\n<!-- /{name} -->"

    for page in pages():
        text = page.read_text("utf-8")
        filled = MARK.sub(block, text)
        if filled != text:
            page.write_text(filled, "utf-8")
    return found
