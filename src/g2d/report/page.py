"""Results as one self-contained HTML page and as a Markdown table; a summary as README's picture.

Takes plain values (what `results.json` and `summary.json` hold, see docs/results.md) and measures
nothing itself; knows no torch. Needs matplotlib and jinja2: `pip install 'g2d[report]'`.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from g2d.core.files import write_bytes
from g2d.core.types import Values
from g2d.errors import G2DError
from g2d.report import figures, later, matrix
from g2d.report.controls import TITLES, controls
from g2d.report.matrix import Line
from g2d.report.results import FORMAT, unattacked

TEMPLATES = Path(__file__).parent / "templates"

# Columns of the Markdown table.
_HEADER = (
    "Threat", "Target", "Value [95 % interval]", "Worst", "Clean accuracy", "Attack", "Spent",
    "Note",
)  # fmt: skip


_UNKEYED = (
    "These results are older than the keys by which rows are told apart; run `g2d attack` again to "
    "have them in words."
)


def require() -> None:
    """Check that what draws pages is installed, before any work is done.

    Raises:
        G2DError: matplotlib or jinja2 is missing.
    """
    missing = [name for name in ("matplotlib", "jinja2") if not importlib.util.find_spec(name)]
    if missing:
        raise G2DError(
            f"a report needs {' and '.join(missing)}, which is not installed; run "
            "pip install 'g2d[report]'"
        )


def render_results(results: Values, path: Path) -> None:
    """Write the page of a red team's `results.json`; nothing in it is loaded from outside.

    Raises:
        G2DError: matplotlib or jinja2 is missing, the results are of another format, or the file
            cannot be written.
    """
    require()
    _check(results)
    rows = matrix.ordered(results["rows"])
    lines = matrix.matrix(rows)
    families = _families(results)
    page = _page(
        "redteam.html",
        r={"vault": {}, "quick": False, "service": None, "chains": {}} | dict(results),
        answer=answer(results),
        unattacked=unattacked(results),
        told=[matrix.told(row) for row in rows if row["metric"] != "check"],
        sanity=[matrix.checked(row) for row in rows if row["metric"] == "check"],
        matrix=[f | {"lines": [x for x in lines if x.family == f["name"]]} for f in families],
        columns=matrix.columns(lines),
        targets=matrix.TARGETS,
        rivals=matrix.rivals(lines),
        controls=controls(results),
        titles=TITLES,
        groups=matrix.panels(rows, families),
        families=families,
        command=_command(results),
        **(_summary(results["summary"]) if results.get("summary") else {"s": None}),
    )
    write(path, page)


def markdown(results: Values) -> str:
    """Return the rows as Markdown: one table for each family, then one of identifiers.

    Raises:
        G2DError: the results are of another format.
    """
    _check(results)
    found = controls(results)
    parts = [f"**{_plain(words)}**\n"] if (words := unattacked(results)) else []
    parts += [
        "### What decides whether to buy\n",
        _table(TITLES, [list(row.values()) for row in found]),
    ]
    for family in _families(results):
        rows = [row for row in matrix.ordered(results["rows"]) if row["family"] == family["name"]]
        if rows:
            parts += [f"### {_plain(family['title'])}\n", f"{_plain(family['question'])}\n"]
            parts += [f"{_plain(family['lacks'])}\n"] if family["lacks"] else []
            parts.append(_table(_HEADER, [_cells(row) for row in rows]))
    names = ("MITRE ATLAS", "NIST AI 100-2", "OWASP ML Top 10")
    versions = results.get("catalogues", {})
    header = ("Family", *(f"{name} {versions.get(name, '')}".strip() for name in names))
    listed = [
        (f["title"], *(f["identifiers"].get(key, "") for key in ("atlas", "nist", "owasp")))
        for f in _families(results)
    ]
    parts += ["### Identifiers\n", _table(header, listed)]
    return "\n".join(parts)


def answer(results: Values) -> list[dict[str, Any]]:
    """Return the question and its answer in three lines, in the words of this run's numbers."""
    lines = matrix.matrix(results["rows"])
    unkeyed = bool(results["rows"]) and not any(map(matrix.kind_of, results["rows"]))
    question = (
        "Parameters are replaced on a schedule. Does an attack that was prepared on old ones, "
        "or built up query by query, still work on those that are live now?"
    )
    queries, won = _query(lines)
    single, jointly = _bit_flips(lines)
    buys = [_stale(lines), "" if won else queries, single]
    lacks = [_white_box(lines), _adaptive(lines), queries if won else "", jointly]
    lacks.append("Rotation raises the cost of reusing an attack, no more.")
    nothing = _UNKEYED if unkeyed else "No row of this run says."
    texts = {
        "The question": [question],
        "What rotation buys": [*filter(None, buys)] or [nothing],
        "What it does not": [*filter(None, lacks)],
    }
    return [
        {"label": label, "text": " ".join(points), "points": points}
        for label, points in texts.items()
    ]


def _strongest(lines: Sequence[Line], family: str, kind: str = "") -> Line | None:
    """The line of a kind (else: of the family) that wins most from the generated chain."""
    found = [line for line in lines if line.kind and line.family == family and _asr(line)]
    found = [line for line in found if line.kind == kind] or found
    return max(found, key=_value, default=None)


def _asr(line: Line, chain: str = "generated") -> Values | None:
    row = line.best(chain)
    return row if row is not None and row["metric"] == "ASR" else None


def _value(line: Line, chain: str = "generated") -> float:
    row = _asr(line, chain)
    return float(row["value"]["value"]) if row else -1.0


def _beside(line: Line, chain: str, lines: Sequence[Line]) -> Values | None:
    """What the same attack wins from another chain; else the family's most successful one."""
    family = [x for x in lines if x.family == line.family and _asr(x, chain)]
    best = max(family, key=lambda x: _value(x, chain), default=line)
    return _asr(line, chain) or _asr(best, chain)


def _points(rate: Values) -> str:
    return f"{100 * rate['value']:.0f}\u00a0%"


def _stale(lines: Sequence[Line]) -> str:
    line = _strongest(lines, "stale", "stale-joint")
    if line is None or not (ours := _asr(line)):
        return ""
    told = f"Attacks made on exposed parameters ({line.threat}) flip {_points(ours['value'])} of "
    told += "the examples on later generations"
    if stayed := _beside(line, "unrotated", lines):
        told += f"; {_points(stayed['value'])} on the live generation, had it stayed"
        told += "" if matrix.against(ours, stayed) < 0 else " (no gain beyond chance)"
    if frozen := _beside(line, "frozen", lines):
        told += f"; {_points(frozen['value'])} on the base, if it never changed"
    if retrained := _beside(line, "retrained", lines):
        told += f"; {_points(retrained['value'])} if every rotation plainly retrains"
    if (rival := line.best("rival")) and (fresh := line.best("draws")):
        told += f". Retrained on the same attacks: {_points(rival['value'])}, where fresh proposals"
        told += f" stand at {_points(fresh['value'])}"
    most = _strongest(lines, "stale") or line
    if _value(most) > _value(line):
        told += (
            f". The most successful try ({most.threat}): {_points((_asr(most) or ours)['value'])}"
        )
    return f"{told}.{_free(lines)}"


def _free(lines: Sequence[Line]) -> str:
    """How the defence does against rivals that cost nothing: soups and noised members."""
    told = ""
    for rival in matrix.rivals(lines):
        if rival["name"] in ("soup", "noise"):
            total = rival["less"] + rival["alike"] + len(rival["more"])
            worse = total - rival["less"]
            told += f" Against {matrix.NAMES[rival['name']]}, which cost nothing, it does no "
            told += f"better in {worse} of {total} lines of the matrix."
    return told


def _query(lines: Sequence[Line]) -> tuple[str, bool]:
    """What the strongest query attack wins by clock, and whether rotation fails to lower that."""
    rows = [row for x in lines if x.kind and x.family == "query" and (row := _asr(x))]
    ticking = [row for row in rows if 0 < (row["extra"].get("every") or 0) < row["queries"]]
    if not ticking:
        return "", False
    best = max(ticking, key=lambda row: row["value"]["value"])
    same = [row for row in rows if row["kind"] == best["kind"]]
    still = next((row for row in same if not row["extra"].get("every")), None)
    told = [] if still is None else [f"{_points(still['value'])} without rotation"]
    for row in sorted(
        (row for row in same if row in ticking), key=lambda row: row["extra"]["every"], reverse=True
    ):
        durable = row["extra"].get("durable")
        kept = f" ({_points(durable)} of the finds outlive the next one)" if durable else ""
        period = f"{row['extra']['every']:,}"
        told.append(f"{_points(row['value'])} with one every {period} queries{kept}")
    won = still is not None and matrix.against(best, still) >= 0
    end = " Rotation does not stop this attacker." if won else ""
    return f"{best['attack']}, flips {', '.join(told)}.{end}", won


def _bit_flips(lines: Sequence[Line]) -> tuple[str, str]:
    """What flips found on one generation do to the next, and what those found on several do."""
    found: dict[str, Values] = {}
    for line in lines:
        if row := line.best("generated"):
            found.setdefault(line.kind, row)
    own, following = (found.get(f"bit-flips-{kind}") for kind in ("own", "next"))
    if own is None or following is None:
        return "", ""
    told = f"Bit flips that cost a generation {_points(own['value'])} of the "
    told += f"examples cost the next one {_points(following['value'])}"
    if later := found.get("bit-flips-later"):
        told += f" and later ones {_points(later['value'])}"
    if hidden := found.get("bit-flips-layout-next"):
        told += f", {_points(hidden['value'])} in the secret layout of its service"
    joint = found.get("bit-flips-joint")
    if joint is None or joint["value"]["low"] <= following["value"]["high"]:
        return f"{told}.", ""
    return f"{told}.", f"Flips found on several at once cost unseen ones {_points(joint['value'])}."


def _white_box(lines: Sequence[Line]) -> str:
    line = _strongest(lines, "white-box", "white-box-autoattack")
    if line is None or not (ours := _asr(line)):
        return ""
    told = f"Whoever reads the live parameters still flips {_points(ours['value'])}"
    if ours.get("worst"):
        told += f" on average and {_points(ours['worst'])} of the worst generation"
    if frozen := _beside(line, "frozen", lines):
        told += (
            f"; {_points(frozen['value'])} of the frozen model, a difference that comes from "
            "training, not from rotation"
        )
    return f"{told}."


def _adaptive(lines: Sequence[Line]) -> str:
    asking = [line for line in lines if line.kind == "adaptive-inversion" and _asr(line)]
    line = _strongest([line for line in lines if line not in asking], "adaptive")
    told = ""
    if line is not None and (ours := _asr(line)):
        told = f"Whoever owns the generator flips {_points(ours['value'])}"
        if frozen := _beside(line, "frozen", [line for line in lines if line not in asking]):
            told += f" (frozen model: {_points(frozen['value'])})"
        told += "."
    if (most := max(asking, key=_value, default=None)) and (row := _asr(most)):
        told += f" With {row['queries']:,} answers of the live one to find it by: "
        told += f"{_points(row['value'])}."
    return told.strip()


def _check(results: Values) -> None:
    if results.get("format") != FORMAT:
        raise G2DError(
            f"these results have format {results.get('format')!r}, this version reads {FORMAT!r}; "
            "run `g2d attack` again"
        )


def _families(results: Values) -> list[dict[str, Any]]:
    """The results' families, and those that only rows name."""
    blank: dict[str, Any] = {"question": "", "identifiers": {}, "seconds": None, "curve": None}
    listed = {
        f["name"]: {"title": f["name"]} | blank | dict(f) for f in results.get("families", [])
    }
    for row in results["rows"]:
        named = {"name": row["family"], "title": row["family"]}
        listed.setdefault(
            row["family"], blank | named | {"identifiers": row.get("identifiers", {})}
        )
    return [
        f | {"anchor": f"family-{place}", "lacks": later.lacking(name, results["rows"])}
        for place, (name, f) in enumerate(listed.items())
    ]


def _cells(row: Values) -> tuple[str, ...]:
    told = matrix.checked(row) if row["metric"] == "check" else matrix.told(row)
    value = told["value"]
    if row["metric"] == "check":
        value = told["verdict"]
        told["note"] = told["told"]
    elif row["metric"] != "ASR":
        value = f"{row['metric']}: {value}"
    keys = ("threat", "target", "", "worst", "clean", "attack", "spent", "note")
    return tuple(told[key] if key else value for key in keys)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header)]
    lines += [[_plain(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    escaped = re.sub(r"([\\`*_|]|(?<=\])[(\[])", r"\\\1", " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _command(results: Values) -> str:
    """The command line that makes these results again."""
    told = ["g2d", "attack", str(results.get("vault", {}).get("path", "VAULT"))]
    names = {"n": "--examples", "eps": "--eps", "seed": "--seed"}
    told += [str(x) for key, name in names.items() if key in results for x in (name, results[key])]
    families = [str(family["name"]) for family in results.get("families", [])]
    if service := results.get("service"):
        told += ["--service", service["url"], "--model", service["model"]]
    elif not results.get("whole"):
        told += [x for name in families for x in ("--threat", name)]
    return shlex.join([*told, *["--quick"] * bool(results.get("quick"))])


def _summary(summary: Values) -> dict[str, Any]:
    """What a page's template needs to show a vault's summary."""
    drawn = {
        "age": figures.age_curve(summary),
        "heat": figures.heat_map(summary["matrix"]),
        "accuracy": figures.accuracy_curve(summary["generations"]),
        "distance": figures.distance_curve(summary["distances"]),
        "latents": figures.latent_map(summary["latents"]),
    }
    pictures = [
        item | {key: figures.picture(item[key]) for key in ("clean", "attacked")}
        for item in summary["images"]["items"]
    ]
    return {"s": summary, "n": summary["numbers"], "plots": drawn, "pictures": pictures}


def _page(template: str, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    return environment.get_template(template).render(values)


def save_hero(path: Path, summary: Mapping[str, Any], rows: Sequence[Values] = ()) -> None:
    """Write the README's picture (PNG, 1600 x 700) of a summary.

    Args:
        rows: the red team's; the curve of the best stale attack is drawn, if it is among them.

    Raises:
        G2DError: matplotlib is missing, or the file cannot be written.
    """
    require()
    try:
        figures.hero(Path(path), summary, best_stale(rows))
    except OSError as error:
        raise G2DError(f"cannot write {path}: {error}") from error


def best_stale(rows: Sequence[Values]) -> list[Values]:
    """The best stale attack on generations by rotations so far, as the basins' row has it."""
    for row in rows:
        if (row.get("kind"), row["target"]) == ("basin-rotations", "generated"):
            return list(row.get("extra", {}).get("curve", ()))
    return []


def write(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old one or the new one, never a part.

    Raises:
        G2DError: the folder cannot be written, or the disk is full; the old file is left alone.
    """
    write_bytes(Path(path), text.encode("utf-8"))
