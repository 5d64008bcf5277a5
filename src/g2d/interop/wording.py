"""What a file of another world says, in a line of ours: one line, legible, and not too long."""

from __future__ import annotations

from g2d.core.imports import words


def legible(text: str, most: int = 40) -> str:
    """A name from a file, as it may be printed: no control characters, at most `most` long."""
    shown = "".join(one if one.isprintable() else "?" for one in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def short(error: BaseException) -> str:
    """What a library says of an error, which may be pages, in a line."""
    return legible(words(error), 160)
