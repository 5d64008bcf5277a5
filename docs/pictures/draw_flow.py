"""Draw docs/pictures/flow.svg: how parameters come to be, go live, and are judged.

python docs/pictures/draw_flow.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 680, 498
BOX_WIDTH, BOX_HEIGHT = 190, 104
COLUMNS = (20, 245, 470)
ROWS = (46, 210, 374)
TITLE, TEXT = 22, 19  # on a phone, 390 points wide, 12 and 11
INK, MUTED, BLUE, GREEN, RED = "#1f2933", "#52606d", "#e6eefc", "#e3f4e8", "#fdeae4"
# name: column, row, colour, title, two lines on what it holds
BOXES = {
    "model": (0, 0, BLUE, "your model", "and your data", ""),
    "population": (1, 0, BLUE, "population", "members", "that repel"),
    "generator": (2, 0, BLUE, "generator", "autoencoder", "and diffusion"),
    "vault": (0, 1, GREEN, "vault", "signed", "generations"),
    "gates": (1, 1, GREEN, "gates", "accuracy,", "old attacks"),
    "candidate": (2, 1, GREEN, "candidate", "sampled,", "then guided"),
    "live": (0, 2, GREEN, "live service", "one generation", "answers"),
    "exposed": (1, 2, RED, "exposed set", "known to", "attackers"),
    "red team": (2, 2, RED, "red team", "attacks,", "report"),
}
ARROWS = (
    ("model", "population"), ("population", "generator"), ("generator", "candidate"),
    ("candidate", "gates"), ("gates", "vault"), ("vault", "live"), ("live", "exposed"),
    ("exposed", "gates"), ("exposed", "candidate"), ("exposed", "red team"),
)  # fmt: skip
LABELS = {
    ("exposed", "gates"): (-10, "end", "tests"),
    ("exposed", "candidate"): (16, "start", "guides"),
}
"""What an arrow says, beside its middle: how far, on which side, the word."""


def box(column: int, row: int, colour: str, title: str, *lines: str) -> str:
    """One rounded box with a title and lines below it."""
    x, y = COLUMNS[column], ROWS[row]
    middle = x + BOX_WIDTH / 2
    told = "".join(
        f'<text x="{middle:g}" y="{y + 60 + 24 * n}" font-size="{TEXT}" fill="{MUTED}">'
        f"{escape(line)}</text>"
        for n, line in enumerate(filter(None, lines))
    )
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="10" fill="{colour}" '
        f'stroke="{INK}" stroke-width="1.2"/>'
        f'<text x="{middle:g}" y="{y + 34}" font-size="{TITLE}" font-weight="600">'
        f"{escape(title)}</text>{told}"
    )


def arrow(start: str, end: str) -> str:
    """A straight arrow between two neighbours, or from a corner to the next; and what it says."""
    (c0, r0, *_), (c1, r1, *_) = BOXES[start], BOXES[end]
    across, down = c1 - c0, r1 - r0
    x0 = COLUMNS[c0] + BOX_WIDTH * (1 + across) / 2
    y0 = ROWS[r0] + BOX_HEIGHT * (1 + down) / 2
    x1 = COLUMNS[c1] + BOX_WIDTH * (1 - across) / 2 - 3 * across
    y1 = ROWS[r1] + BOX_HEIGHT * (1 - down) / 2 - 3 * down
    side, anchor, word = LABELS.get((start, end), (0, "", ""))
    label = (
        f'<text x="{(x0 + x1) / 2 + side:g}" y="{(y0 + y1) / 2 + 8:g}" font-size="{TEXT}" '
        f'font-style="italic" text-anchor="{anchor}" fill="{MUTED}">{escape(word)}</text>'
    )
    return (
        f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{INK}" '
        f'stroke-width="2" marker-end="url(#head)"/>{label if word else ""}'
    )


def drawing() -> str:
    """The whole picture."""
    words = "".join(
        f'<text x="{COLUMNS[0]}" y="{y - 13}" font-size="{TEXT}" font-style="italic" '
        f'text-anchor="start" fill="{MUTED}">{text}</text>'
        for y, text in zip(ROWS[:2], ("once", "at each rotation"), strict=True)
    )
    parts = [box(*values) for values in BOXES.values()] + [arrow(*ends) for ends in ARROWS]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-label="From your model to a rotating live service" '
        f'font-family="system-ui, sans-serif" text-anchor="middle" fill="{INK}">'
        f'<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{INK}"/></marker>'
        f"</defs>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#ffffff"/>'
        f"{words}{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("flow.svg").write_text(drawing(), "utf-8")
