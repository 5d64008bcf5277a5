"""Draw docs/pictures/flow.svg: how parameters come to be, go live, and are judged.

python docs/pictures/draw_flow.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 680, 430
BOX_WIDTH, BOX_HEIGHT = 190, 82
COLUMNS = (20, 245, 470)
ROWS = (44, 186, 328)
INK, MUTED, BLUE, GREEN, RED = "#1f2933", "#52606d", "#e6eefc", "#e3f4e8", "#fdeae4"
# name: column, row, colour, title, what it holds
BOXES = {
    "model": (0, 0, BLUE, "your model", "and your data"),
    "population": (1, 0, BLUE, "population", "members that repel"),
    "generator": (2, 0, BLUE, "generator", "autoencoder, diffusion"),
    "vault": (0, 1, GREEN, "vault", "signed generations"),
    "gates": (1, 1, GREEN, "gates", "accuracy, old attacks"),
    "candidate": (2, 1, GREEN, "candidate", "sampled, guided"),
    "live": (0, 2, GREEN, "live service", "one generation"),
    "exposed": (1, 2, RED, "exposed set", "known to attackers"),
    "red team": (2, 2, RED, "red team", "attacks, report"),
}
ARROWS = (
    ("model", "population"), ("population", "generator"), ("generator", "candidate"),
    ("candidate", "gates"), ("gates", "vault"), ("vault", "live"), ("live", "exposed"),
    ("exposed", "gates"), ("exposed", "red team"),
)  # fmt: skip


def box(column: int, row: int, colour: str, title: str, text: str) -> str:
    """One rounded box with a title and a line below it."""
    x, y = COLUMNS[column], ROWS[row]
    middle = x + BOX_WIDTH / 2
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="10" fill="{colour}" '
        f'stroke="{INK}" stroke-width="1.2"/>'
        f'<text x="{middle}" y="{y + 36}" font-size="19" font-weight="600">{escape(title)}</text>'
        f'<text x="{middle}" y="{y + 60}" font-size="15.5" fill="{MUTED}">{escape(text)}</text>'
    )


def arrow(start: str, end: str) -> str:
    """A straight arrow between two neighbours."""
    (c0, r0, *_), (c1, r1, *_) = BOXES[start], BOXES[end]
    across, down = c1 - c0, r1 - r0
    x0 = COLUMNS[c0] + BOX_WIDTH * (1 + across) / 2
    y0 = ROWS[r0] + BOX_HEIGHT * (1 + down) / 2
    x1 = COLUMNS[c1] + BOX_WIDTH * (1 - across) / 2 - 3 * across
    y1 = ROWS[r1] + BOX_HEIGHT * (1 - down) / 2 - 3 * down
    return (
        f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{INK}" '
        f'stroke-width="2" marker-end="url(#head)"/>'
    )


def drawing() -> str:
    """The whole picture."""
    words = "".join(
        f'<text x="{COLUMNS[0]}" y="{y - 13}" font-size="15" font-style="italic" '
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
