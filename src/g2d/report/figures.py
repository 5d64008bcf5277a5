"""Plots as inline SVG that follows the page's colours, and the README's picture; matplotlib only.

Each function takes plain values of a summary and returns one `<svg>` without outside references.
Colours are placeholders that become CSS variables, so one drawing suits light and dark pages.
What the plots mean is said in the report's template.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from g2d.core.types import Values

# Placeholder -> CSS variable. The placeholders are all but black, so a bare SVG stays visible.
_COLOURS = {
    "#0a0b01": "--ink",
    "#0a0b02": "--muted",
    "#0a0b03": "--line",
    "#0a0b04": "--frozen",
    "#0a0b05": "--rotated",
    "#0a0b06": "--white-box",
    "#0a0b07": "--on-frozen",
}
_INK, _MUTED, _LINE, _FROZEN, _ROTATED, _WHITE_BOX, _ON_FROZEN = _COLOURS
_BASINS = tuple(f"#0a0c{i:02x}" for i in range(8))
_COLOURS |= {colour: f"--basin-{i}" for i, colour in enumerate(_BASINS)}

# How the lines of `curves` look: colour, marker, dashes; and what stands for each in a page's key.
_LINES = (
    (_ROTATED, "o", "-"),
    (_FROZEN, "s", "--"),
    (_BASINS[2], "^", "-."),
    (_BASINS[4], "D", ":"),
    (_BASINS[3], "v", "--"),
    (_BASINS[7], "X", ":"),
    (_WHITE_BOX, "P", "-."),
    (_BASINS[6], "*", "-"),
)
KEYS = tuple(
    {"variable": _COLOURS[colour], "glyph": glyph}
    for (colour, *_), glyph in zip(_LINES, "●■▲◆▼✖✚★", strict=True)
)

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "g2d",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "none",
    "lines.linewidth": 2.0,
}


def _svg(
    name: str, label: str, draw: Callable[[Any], None], size: tuple[float, float] = (5.0, 3.6)
) -> str:
    """Draw into fresh axes and return inline SVG; `name` keeps its ids apart from other plots'."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        out = io.StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=empty)
    return _inline(out.getvalue(), name, label)


def _inline(text: str, name: str, label: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    quoted = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{quoted}"', 1)


def _legend_above(axes: Any, columns: int = 2) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncol=columns, borderaxespad=0.2)


def _percent_axis(axes: Any, label: str) -> None:
    axes.set_ylim(-3, 103)
    axes.set_ylabel(label, parse_math=False)


def _draw_age(axes: Any, data: Values, colours: Sequence[str]) -> None:
    """ASR against age: mean with its interval, every pair as a dot, frozen and white-box lines."""
    frozen, rotated, white_box = colours
    ages = [entry["age"] for entry in data["age"]]
    mean, low, high = ([100 * e[key] for e in data["age"]] for key in ("value", "low", "high"))
    order = {n: i for i, n in enumerate(sorted({cell["crafted"] for cell in data["matrix"]}))}
    dots = [
        (order[c["scored"]] - order[c["crafted"]], 100 * c["value"])
        for c in data["matrix"]
        if order[c["scored"]] > 0
    ]
    axes.scatter(*zip(*dots, strict=True), s=9, color=rotated, alpha=0.35, linewidths=0)
    axes.fill_between(ages, low, high, color=rotated, alpha=0.18, linewidth=0)
    axes.plot(ages, mean, "o-", color=rotated, markersize=5, label="rotated")
    numbers = data["numbers"]
    axes.axhline(100 * numbers["frozen_asr"], color=frozen, label="not rotated")
    if "undefended_asr" in numbers:
        plain = 100 * numbers["undefended_asr"]
        axes.axhline(plain, color=frozen, ls=":", label="plain training")
    axes.axhline(
        100 * numbers["white_box_asr"],
        color=white_box,
        ls="--",
        label="white-box",
    )
    axes.set_xticks(ages)
    axes.set_xlabel("rotations since the attack was crafted")
    _percent_axis(axes, "attack success rate, %")


def _draw_best(axes: Any, best: Sequence[Values], colour: str) -> None:
    """The attacker who sorts all that was exposed by basin, against rotations so far."""
    counts = [point["rotations"] for point in best]
    axes.plot(
        counts, [100 * point["value"] for point in best], "s-", color=colour, markersize=5,
        label="best old attack",
    )  # fmt: skip
    axes.set_xlabel("rotations since it was crafted (best: rotations so far)")


def age_curve(data: Values) -> str:
    """How an attack decays over rotations."""

    def draw(axes: Any) -> None:
        _draw_age(axes, data, (_FROZEN, _ROTATED, _WHITE_BOX))
        _legend_above(axes)

    label = "Attack success rate against rotations since crafting: " + ", ".join(
        f"{e['age']}: {e['value']:.0%}" for e in data["age"]
    )
    return _svg("age", label, draw)


def heat_map(matrix: Sequence[Values]) -> str:
    """ASR of attacks crafted on one generation (row), scored on another (column)."""
    numbers = sorted({cell["crafted"] for cell in matrix})
    place = {number: index for index, number in enumerate(numbers)}

    def draw(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        for cell in matrix:
            x, y, value = place[cell["scored"]], place[cell["crafted"]], cell["value"]
            corner = (x - 0.48, y - 0.48)
            axes.add_patch(Rectangle(corner, 0.96, 0.96, color=_FROZEN, alpha=value, lw=0))
            if len(numbers) <= 16:
                ink = _ON_FROZEN if value > 0.6 else _INK
                axes.text(
                    x, y, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=10
                )
        axes.set(xlim=(-0.6, len(numbers) - 0.4), ylim=(len(numbers) - 0.4, -0.6))
        every = max(1, len(numbers) // 12)
        axes.set_xticks(range(0, len(numbers), every), numbers[::every])
        axes.set_yticks(range(0, len(numbers), every), numbers[::every])
        axes.set_xlabel("scored on generation")
        axes.set_ylabel("crafted on generation")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    label = f"Heat map of attack success rates among {len(numbers)} generations, in percent"
    return _svg("heat", label, draw, (5.0, 4.3))


def _draw_accuracy(axes: Any, generations: Sequence[Values], colours: Sequence[str]) -> None:
    base_colour, colour = colours
    base, rest = generations[0], generations[1:]
    rate = base["clean_accuracy"]
    low, high = 100 * rate["low"], 100 * rate["high"]
    axes.axhspan(low, high, color=base_colour, alpha=0.13, lw=0)
    axes.axhline(100 * rate["value"], color=base_colour, label="base, with its 95 % interval")
    x = [g["number"] for g in rest]
    rates = [g["clean_accuracy"] for g in rest]
    y = [100 * r["value"] for r in rates]
    bars = [
        [100 * (r["value"] - r["low"]) for r in rates],
        [100 * (r["high"] - r["value"]) for r in rates],
    ]
    axes.errorbar(
        x, y, yerr=bars, fmt="o-", color=colour, markersize=5, elinewidth=1.2, label="generations"
    )
    floor = min([low, *(100 * r["low"] for r in rates)])
    axes.set_ylim(max(0, floor - 3), 100.5)
    axes.set_xticks(x[:: max(1, len(x) // 12)])
    axes.set_xlabel("generation")
    axes.set_ylabel("clean accuracy, %")


def accuracy_curve(generations: Sequence[Values]) -> str:
    """Clean accuracy across generations, with the base's line."""

    def draw(axes: Any) -> None:
        _draw_accuracy(axes, generations, (_FROZEN, _ROTATED))
        _legend_above(axes)

    label = "Clean accuracy by generation: " + ", ".join(
        f"{g['number']}: {g['clean_accuracy']['value']:.1%}" for g in generations
    )
    return _svg("accuracy", label, draw)


def distance_curve(distances: Values) -> str:
    """Aligned distances of each generation, and the gate's limit."""
    listed = distances["generations"]

    def draw(axes: Any) -> None:
        x = [entry["number"] for entry in listed]
        axes.plot(x, [e["previous"] for e in listed], "o-", color=_ROTATED, label="previous")
        axes.plot(
            x, [e["nearest_exposed"] for e in listed], "s--", color=_FROZEN, markersize=5,
            label="nearest exposed",
        )  # fmt: skip
        axes.plot(
            x, [e["nearest_member"] for e in listed], "^:", color=_WHITE_BOX, markersize=6,
            label="nearest population member",
        )  # fmt: skip
        axes.axhline(distances["limit"], color=_MUTED, lw=1.2, label="gate's limit")
        axes.set_ylim(bottom=0)
        axes.set_xticks(x[:: max(1, len(x) // 12)])
        axes.set_xlabel("generation")
        axes.set_ylabel("relative L1 distance" + (", aligned" * distances["aligned"]))
        _legend_above(axes)

    least = min(entry["nearest_exposed"] for entry in listed)
    return _svg("distance", f"Aligned distances by generation; least {least:.3f}", draw)


def latent_map(latents: Values) -> str:
    """Population members by basin, generations as a numbered path."""
    members, path = latents["members"], latents["generations"]

    def draw(axes: Any) -> None:
        for basin in sorted({m["basin"] for m in members}):
            points = [(m["x"], m["y"]) for m in members if m["basin"] == basin]
            colour = _BASINS[basin % len(_BASINS)]
            axes.scatter(*zip(*points, strict=True), s=22, color=colour, alpha=0.8, linewidths=0)
        x, y = [g["x"] for g in path], [g["y"] for g in path]
        axes.plot(x, y, "-", color=_MUTED, lw=1, alpha=0.7)
        axes.scatter(x, y, s=34, facecolors="none", edgecolors=_INK, linewidths=1.2)
        for entry in path:
            axes.annotate(
                str(entry["number"]), (entry["x"], entry["y"]), xytext=(5, 4),
                textcoords="offset points", fontsize=11, fontweight="bold",
            )  # fmt: skip
        first, second = (100 * share for share in latents["explained"])
        axes.set_xlabel(f"first principal axis ({first:.0f} % of the variance)")
        axes.set_ylabel(f"second ({second:.0f} %)")

    label = f"Map of {len(members)} population members and {len(path)} generations in latent space"
    return _svg("latents", label, draw, (5.0, 4.3))


def curves(
    name: str, x: str, lines: Sequence[tuple[int, str, Sequence[Values]]], axes: tuple[str, str]
) -> str:
    """Several lines with their intervals, in percent; the page says in words which is which.

    Args:
        name: keeps the drawing's ids apart from other plots'. x: key of a point's place.
        lines: (look, an index of `KEYS`; label; points with `x`, "value" and perhaps "low" and
            "high"). axes: labels across and upwards.
    """
    places = sorted({float(point[x]) for _, _, points in lines for point in points})

    def draw(ax: Any) -> None:
        for look, _, points in lines:
            colour, marker, dashes = _LINES[look]
            at, up = [p[x] for p in points], [100 * p["value"] for p in points]
            ax.plot(at, up, color=colour, marker=marker, ls=dashes, markersize=5)
            if all("low" in p and "high" in p for p in points):
                low, high = ([100 * p[side] for p in points] for side in ("low", "high"))
                ax.fill_between(at, low, high, color=colour, alpha=0.1, linewidth=0)
        if places[0] > 0 and places[-1] / places[0] >= 50:
            ax.set_xscale("log")
            ax.set_xticks(places, [f"{place:g}" for place in places])
            ax.minorticks_off()
        elif all(place.is_integer() for place in places):
            ax.locator_params(axis="x", integer=True)
        ax.set_xlabel(axes[0], parse_math=False)
        _percent_axis(ax, f"{axes[1]}, %")

    told = "; ".join(
        f"{label}: {points[0]['value']:.0%} to {points[-1]['value']:.0%}"
        for _, label, points in lines
    )
    return _svg(name, f"{axes[1]} against {axes[0]}. {told}", draw, (5.0, 3.3))


def picture(pixels: Sequence[Any]) -> str:
    """Return a PNG data URI of rows of grey values or [r, g, b], 0 to 255."""
    import numpy as np
    from matplotlib.image import imsave

    out = io.BytesIO()
    values = np.asarray(pixels, dtype=np.uint8)
    imsave(out, values, cmap="gray", vmin=0, vmax=255, format="png", metadata={"Software": ""})
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def hero(path: Path, data: Values, best: Sequence[Values] = ()) -> None:
    """Draw the README's picture, 1600 x 700: accuracy stays, and what old attacks still win.

    Args:
        best: the best stale attack by rotations so far: one that knows everything exposed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    frozen, rotated, white_box, ink = "#c2410c", "#1d4ed8", "#7c3aed", "#1f2933"
    plain = {key: value for key, value in _STYLE.items() if value not in _COLOURS}
    plain |= {"font.size": 14, "legend.fontsize": 13, "grid.color": "#e4e7eb", "text.color": ink}
    plain |= {f"figure.constrained_layout.{side}": 0.18 for side in ("w_pad", "h_pad")}
    n, old = data["numbers"], next(entry for entry in data["age"] if entry["age"] == 1)
    clean = [g["clean_accuracy"]["value"] for g in data["generations"]]
    rotated_mean = sum(clean[1:]) / len(clean[1:])
    stored = f"One old attack {100 * old['value']:.0f} %"
    stays = f"not rotated {100 * n['frozen_asr']:.0f} %"
    titles = (
        f"Accuracy: base {100 * clean[0]:.0f} %, {n['rotations']} generations "
        f"{100 * rotated_mean:.0f} %",
        f"{stored}, the best {100 * best[-1]['value']:.0f} %" if best else f"{stored}, {stays}",
    )
    note = (
        f"{data['task']}: {data['rows'][0]['attack']}, L∞ ε = {n['eps']:g}, "
        f"{n['test_examples']} test images, 95 % intervals. "
        f"White-box attacks on the live parameters still reach "
        f"{100 * n['white_box_asr']:.0f} % or more."
    )
    with matplotlib.rc_context(plain):
        figure = Figure(figsize=(16, 7), dpi=100, layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        _draw_accuracy(left, data["generations"], (frozen, rotated))
        _percent_axis(left, "clean accuracy, %")  # the whole scale: flat must look flat
        _draw_age(right, data, (frozen, rotated, white_box))
        if best:
            _draw_best(right, best, ink)
        for axes, title in zip((left, right), titles, strict=True):
            axes.set_title(title, loc="left", fontsize=20, fontweight="bold", pad=66)
            _legend_above(axes, 3)
        figure.supxlabel(note, fontsize=13, color="#52606d")
        figure.savefig(path, format="png", metadata={"Software": None})
