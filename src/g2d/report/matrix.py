"""What a page shows of a red team's rows: texts, the threat matrix, rivals compared, curves.

Takes rows as plain values (docs/results.md). How cells and curves look lives in `templates` and in
`figures`; what they mean in words, in `templates/redparts.html`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from g2d.core.types import Values
from g2d.report import figures

# Columns of the threat matrix: the target's chain of networks, and what it is.
TARGETS = {
    "generated": "The defence: every rotation makes a generated network live.",
    "unrotated": "The live generation, never rotated again: what training gives without rotation.",
    "frozen": "No rotation: the base, the model that was deployed first, for ever.",
    "retrained": "Rival: every rotation plainly trains a network from a fresh seed.",
    "soup": "Rival: every rotation makes a mean of population members live.",
    "noise": "Rival: every rotation makes a noisy copy of known parameters live.",
    "permuted": "Control: hidden units reordered, the same function; must equal frozen.",
    "draws": "What would be live next: fresh proposals, against the same attacks as the rival.",
    "hardened": "Rival: the base trained once more, with FGSM at half of eps; same seed and data.",
    "rival": "Rival: what would be live next if it were retrained on the same exposed attacks.",
}
ELSEWHERE = "other"
NAMES = {"soup": "soups of members", "noise": "members with noise"}
OK = "ok"
_SHORT = {"not measured": "n/m"}


_MOST = 8  # lines in one panel: more looks would not be told apart


def chain_of(row: Values) -> str:
    """The chain of networks that a row was measured on; "other" where no column shows it.

    Files older than the key (0.1) name the chain first in `target`.
    """
    chain = row.get("chain", re.split(r"[\s,:;(]", str(row["target"]), maxsplit=1)[0])
    return str(chain) if chain in TARGETS else ELSEWHERE


def every_of(row: Values) -> int | None:
    """After how many queries a row's target rotates; None: never, or there is no such clock."""
    every = row["extra"].get("every")
    return None if every is None else int(every)


def kind_of(row: Values) -> str:
    """What a row measures, the key that readers select by; "" in files older than the key."""
    return str(row.get("kind", ""))


def clock_of(row: Values) -> str:
    """How often a row's target rotates, in words; else what its target says beside its chain."""
    target, chain = str(row["target"]), chain_of(row)
    if chain == ELSEWHERE:
        return target
    if "every" in row["extra"]:
        every = every_of(row)
        return f"a rotation every {every:,} queries" if every else "no rotation"
    return target.removeprefix(chain).strip(" ,:;()")


def measured(row: Values) -> bool:
    """Whether a row holds a number."""
    return bool(row["status"] == OK and row["value"] is not None)


def percent(rate: Values | None) -> str:
    """A rate as text, with its interval; nothing for none."""
    if rate is None:
        return ""
    value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
    return f"{value:.1f}\u00a0% [{low:.1f}–{high:.1f}]"


def ordered(rows: Sequence[Values]) -> list[Values]:
    """Rows of one threat together, by target; threats as they come."""
    first: dict[tuple[str, str], int] = {}
    for place, row in enumerate(rows):
        first.setdefault((row["family"], row["threat"]), place)
    return sorted(rows, key=lambda row: (first[row["family"], row["threat"]], _rank(row)))


def _rank(row: Values) -> int:
    return [*TARGETS, ELSEWHERE].index(chain_of(row))


def told(row: Values) -> dict[str, Any]:
    """A row as texts, its status in words where nothing was measured."""
    spent = {
        "queries": ("query", "queries"),
        "gradient_steps": ("gradient step", "gradient steps"),
    }
    words = [
        f"{row[key]:,} {one if row[key] == 1 else many}"
        for key, (one, many) in spent.items()
        if row.get(key) is not None
    ]
    if row["scored"] > 1:
        words.append(f"scored on {row['scored']} networks")
    if row.get("seconds", 0) >= 0.05:
        words.append(f"{row['seconds']:.1f} CPU s")
    value = percent(row["value"])
    if not measured(row):
        value = f"{row['status']}, so far {value}" if value else row["status"]
    same = ("family", "threat", "target", "attack", "metric", "note", "status")
    return {
        **{key: row[key] for key in same},
        "measured": measured(row),
        "value": value,
        "worst": percent(row["worst"]),
        "clean": percent(row["clean_accuracy"]),
        "spent": ", ".join(words),
        "more": _more(row["extra"]),
    }


def _more(extra: Values) -> str:
    """The plain values of a row's `extra`; curves and other nested ones are left to the JSON."""
    listed = []
    for key, value in extra.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
            listed.append(f"{name}: {percent(value)}")
        elif isinstance(value, bool) and key != "passed":
            listed.append(f"{name}: {'yes' if value else 'no'}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            listed.append(f"{name}: {value:.4g}")
    return "; ".join(listed)


def checked(row: Values) -> dict[str, Any]:
    """A sanity check as texts; one that did not run has not passed."""
    ran = row["status"] == OK
    passed = ran and row["extra"].get("passed") is True
    verdict = ("passed" if passed else "did not pass") if ran else row["status"]
    note = str(row["note"]).removeprefix("passed: ").removeprefix("FAILED: ")
    texts = {"Rule": row["extra"].get("rule"), "Found": note or percent(row["value"])}
    said = ". ".join(f"{name}: {text}" for name, text in texts.items() if text)
    name = str(row["threat"]).removeprefix("check: ")
    return told(row) | {"passed": passed, "verdict": verdict, "told": said, "threat": name}


@dataclass
class Line:
    """One line of the threat matrix: what an attacker does, and its rows by target's chain."""

    family: str
    kind: str
    threat: str
    clock: str
    metric: str
    rows: dict[str, list[Values]] = field(default_factory=dict)

    @property
    def attack(self) -> str:
        """The algorithms of its rows."""
        return "; ".join(
            dict.fromkeys(row["attack"] for rows in self.rows.values() for row in rows)
        )

    @property
    def name(self) -> str:
        """Threat, clock, and what is measured if that is not ASR."""
        metric = "" if self.metric == "ASR" else self.metric
        return ", ".join(part for part in (self.threat, self.clock, metric) if part)

    def best(self, chain: str) -> Values | None:
        """The row that won most for the attacker on a chain; None where nothing was measured."""
        rows = [row for row in self.rows.get(chain, []) if measured(row)]
        return max(rows, key=lambda row: (_harm(row), row["value"]["value"]), default=None)

    @property
    def still(self) -> bool:
        """Whether its target could rotate by a clock and does not."""
        extras = [row["extra"] for rows in self.rows.values() for row in rows]
        return any("every" in extra for extra in extras) and not any(
            extra.get("every") for extra in extras
        )

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """What the heat map shows of each chain."""
        return {chain: self._cell(chain, rows) for chain, rows in self.rows.items()}

    def _cell(self, chain: str, rows: Sequence[Values]) -> dict[str, Any]:
        row = self.best(chain)
        if row is None:
            said = dict.fromkeys(_SHORT.get(str(row["status"]), str(row["status"])) for row in rows)
            why = "; ".join(str(row["note"]) for row in rows if row["note"])
            return {"harm": None, "text": " / ".join(said), "title": why}
        title, harm = f"{row['metric']} {percent(row['value'])}", row["harm"]
        if harm is None:
            return {"harm": None, "text": f"{100 * row['value']['value']:.0f}", "title": title}
        kept = min(max(harm, 0.0), 1.0)
        return {"harm": kept, "text": f"{100 * harm:.0f}", "title": title}


def _harm(row: Values) -> float:
    return -1.0 if row["harm"] is None else float(row["harm"])


def matrix(rows: Iterable[Values]) -> list[Line]:
    """Rows as lines of the threat matrix, the defence's first; sanity checks are no threats.

    Rows of one threat, clock and metric share a line across chains, though budgets may differ (the
    attack names them); where one chain was met with several attacks, every attack gets a line.
    """
    groups: dict[tuple[str, str, str, str, str], list[Values]] = {}
    for row in rows:
        if row["metric"] != "check":
            key = (row["family"], kind_of(row), row["threat"], clock_of(row), row["metric"])
            groups.setdefault(key, []).append(row)
    lines = []
    for key, group in groups.items():
        chains = [chain_of(row) for row in group]
        counted = [chain for row, chain in zip(group, chains, strict=True) if measured(row)]
        several = len(set(counted)) < len(counted)
        for attack in dict.fromkeys(row["attack"] if several else "" for row in group):
            line = Line(*key)
            for row, chain in zip(group, chains, strict=True):
                if not several or row["attack"] == attack:
                    line.rows.setdefault(chain, []).append(row)
            lines.append(line)
    return sorted(lines, key=lambda line: "generated" not in line.rows)


def columns(lines: Iterable[Line]) -> list[str]:
    """Chains that the matrix has columns for."""
    found = {chain for line in lines for chain in line.rows}
    return [name for name in (*TARGETS, ELSEWHERE) if name in found]


def rivals(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Count lines in which generated parameters lose less, as much or more than each rival."""
    counted = []
    for name in [name for name in TARGETS if name != "generated"]:
        signs: list[tuple[Line, int]] = []
        for line in lines:
            ours, rival = line.best("generated"), _rival(line, name, lines)
            if ours and rival and ours["harm"] is not None and rival["harm"] is not None:
                signs.append((line, against(ours, rival)))
        if signs:
            more = [f"{line.family}: {line.name}" for line, sign in signs if sign > 0]
            less, alike = (sum(sign == wanted for _, sign in signs) for wanted in (-1, 0))
            counted.append({"name": name, "less": less, "alike": alike, "more": more})
    return counted


def _rival(line: Line, name: str, lines: Sequence[Line]) -> Values | None:
    """A rival's row in a line; the frozen model's under any clock, for it has none."""
    row = line.best(name)
    if row is not None or name != "frozen":
        return row
    known = (line.family, line.threat, line.metric, line.attack)
    same = [x for x in lines if (x.family, x.threat, x.metric, x.attack) == known]
    return next((row for x in same if (row := x.best(name))), None)


def against(ours: Values, rival: Values) -> int:
    """-1, 0 or 1: less, as much, or more harm than the rival; 0 where the intervals overlap."""
    a, b = ours["value"], rival["value"]
    if a["low"] <= b["high"] and b["low"] <= a["high"]:
        return 0
    return -1 if ours["harm"] < rival["harm"] else int(ours["harm"] > rival["harm"])


def panels(rows: Sequence[Values], families: Iterable[Values]) -> list[dict[str, Any]]:
    """Curves by family: what the page's section of a family shows, controls apart.

    Args:
        families: as in `results.json`; `curve` says how a family's are drawn, if it has any.
    """
    found = []
    for family in families:
        style = family.get("curve")
        if not style:
            continue
        named = [row for row in rows if row["family"] == family["name"]]
        drawn = [row for row in named if _points(row, style["x"])]
        groups = _grouped(drawn, style["by"])
        titles, name = _titles(groups, style["by"]), re.sub(r"[^a-z0-9]+", "-", family["name"])
        made = [
            _panel(f"{name}-{place}", title, group, style)
            for place, (title, group) in enumerate(zip(titles, groups, strict=True))
        ]
        if made:
            own = [panel for panel in made if "generated" in panel["chains"]] or made
            rest = [panel for panel in made if panel not in own]
            texts = {key: style[key] for key in ("title", "reads", "hides")}
            found.append({"family": name, "panels": own, "controls": rest} | texts)
    return found


def _points(row: Values, x: str) -> list[Values]:
    curve = row["extra"].get("curve") or []
    return [point for point in curve if x in point and point.get("value") is not None]


def _read(row: Values, key: str) -> str:
    if key == "clock":
        return clock_of(row)
    if key == "control":  # the defence and what it is there to replace share a panel
        return chain_of(row).replace("generated", "").replace("frozen", "")
    return str(row.get(key, ""))


def _grouped(rows: Sequence[Values], by: Sequence[str]) -> list[list[Values]]:
    """Rows that share a panel: alike in `by`, and no more than can be told apart."""
    groups: dict[tuple[str, ...], list[Values]] = {}
    for row in sorted(rows, key=_rank):
        groups.setdefault(tuple(_read(row, name) for name in by), []).append(row)
    return [
        group[first : first + _MOST]
        for group in groups.values()
        for first in range(0, len(group), _MOST)
    ]


def _titles(groups: Sequence[Sequence[Values]], by: Sequence[str]) -> list[str]:
    """What tells the panels of a family apart."""
    differing = [key for key in by if len({_read(group[0], key) for group in groups}) > 1]
    parts = [[_read(group[0], key) for key in differing or by[:1]] for group in groups]
    return [", ".join(part for part in told if part) for told in parts]


def _panel(name: str, title: str, rows: Sequence[Values], style: Values) -> dict[str, Any]:
    drawn = [
        (look, label, _points(row, style["x"]))
        for row, label, look in zip(rows, _labels(rows, style["by"]), _looks(rows), strict=True)
    ]
    svg = figures.curves(name, style["x"], drawn, (style["across"], style["upwards"]))
    keys = [figures.KEYS[look] | {"label": label} for look, label, _ in drawn]
    return {"title": title, "svg": svg, "lines": keys, "chains": [chain_of(row) for row in rows]}


def _labels(rows: Sequence[Values], by: Sequence[str]) -> list[str]:
    """What tells the lines of a panel apart: the target, and whatever else differs."""
    told = "target" if len({chain_of(row) for row in rows}) > 1 else "clock"
    others = [key for key in ("threat", "attack") if key not in by]
    differing = [key for key in others if len({row[key] for row in rows}) > 1]
    labels = [", ".join(t for key in (told, *differing) if (t := _read(row, key))) for row in rows]
    return [label or str(row["target"]) for label, row in zip(labels, rows, strict=True)]


def _looks(rows: Sequence[Values]) -> list[int]:
    """A target's line looks the same in all panels; its further lines take what is left."""
    chains, order = [chain_of(row) for row in rows], [*TARGETS, ELSEWHERE]
    known = {chain: order.index(chain) % _MOST for chain in chains}
    left = iter(look for look in range(_MOST) if look not in known.values())
    return [
        known[chain] if chain not in chains[:place] else next(left)
        for place, chain in enumerate(chains)
    ]
