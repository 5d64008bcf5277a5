"""docs/pictures/robust.png: what every attacker leaves of the generated chain, and the controls.

    python -m benchmarks.robust.picture

Drawn from the JSON of benchmarks/robust; a dot is one seed, a stroke their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common.places import DOCS
from benchmarks.robust.records import Record, get, of, records
from benchmarks.robust.tables import ATTACKERS

PATH = DOCS / "pictures" / "robust.png"
Line = tuple[str, list[float], str]
WHITE, STALE, OWNS, CONTROL = "#b2182b", "#2166ac", "#762a83", "#7f7f7f"


def known(values: Sequence[float | None]) -> list[float]:
    return [100 * v for v in values if v is not None]


def attackers(data: Sequence[Record]) -> list[Line]:
    """Accuracy left of the generated chain, by what the attacker has."""
    colours = (WHITE, WHITE, STALE, STALE, STALE, STALE, OWNS, OWNS)
    found: list[Line] = [("nothing: clean", known(of(data, "generated", "clean")), CONTROL)]
    for (words, key), colour in zip(ATTACKERS, colours, strict=True):
        path = ("autoattack",) if key == "autoattack" else (key, "accuracy")
        found.append((words, known(of(data, "generated", *path)), colour))
    return found


def controls(data: Sequence[Record]) -> list[Line]:
    """What the secret is worth: the stale joint attack less the same attack on itself."""
    names: list[str] = []
    for record in data:
        for name in get(record, "generated", "controls") or ():
            names += [name] * (name not in names)

    def worth(*path: str) -> list[float]:
        stale, own = (of(data, *path, key, "accuracy") for key in ("stale_joint", "itself"))
        return [
            100 * (s - i) for s, i in zip(stale, own, strict=True)
            if s is not None and i is not None
        ]  # fmt: skip

    found: list[Line] = [("generated", worth("generated"), STALE)]
    return found + [(n, worth("generated", "controls", n), CONTROL) for n in names]


def draw(axes: Any, lines: Sequence[Line]) -> None:
    """One line of dots each, and their mean."""
    for place, (_, values, colour) in enumerate(reversed(lines)):
        if not values:
            continue
        mean = sum(values) / len(values)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.6)
        edge = max([mean, *values])
        axes.annotate(f"{mean:.1f}", (edge, place), (6, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(lines)), [name for name, *_ in reversed(lines)], fontsize=8)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    data = records()
    left, right = attackers(data), controls(data)
    figure, (a, b) = plt.subplots(
        1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=(3, 2)
    )
    draw(a, left)
    low = min(v for _, values, _ in left for v in values)
    a.set_xlim(max(0.0, low - 2), 100.9)
    a.set_xlabel("accuracy left, %", fontsize=8)
    a.set_title("Generated robust chain: the attacker has …", fontsize=9, loc="left")
    draw(b, right)
    b.axvline(0, color="black", linewidth=0.6)
    b.margins(x=0.18)
    b.set_xlabel("points above the attack on itself", fontsize=8)
    b.set_title("Joint attack on the last twenty, on …", fontsize=9, loc="left")
    for axes in (a, b):
        axes.tick_params(axis="x", labelsize=8)
    figure.savefig(PATH, dpi=110)


if __name__ == "__main__":
    main()
