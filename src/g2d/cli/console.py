"""What the terminal shows: lines, tables, a vault at a glance, progress; not the commands.

Results go to stdout; errors, and the progress lines that stand in for bars where stdout is no
terminal, go to stderr. Imports rich lazily and knows no torch.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from g2d.cli.flags import meaning
from g2d.report.results import unattacked

if TYPE_CHECKING:
    from rich.console import Console

    from g2d.core.types import Progress
    from g2d.settings import Settings
    from g2d.vault.vault import GenerationRecord, Vault


_GATES = {
    "accuracy": ("accuracy drop bound", "{:.2%}"),
    "class": ("class drop", "{:.2%}"),
    "distance": ("distance", "{:.4f}"),
    "stale_asr": ("stale ASR", "{:.2%}"),
}
"""Titles and number formats of gates whose entries in manifests bring none; others show anyway."""
_FIXED = ("number", "state", "made", "robust", "CPU s", "rejected")
"""Columns that are not gates'; the robust gate's value is one of a generation's figures."""


# --- lines and tables ----------------------------------------------------------------------------


def print_line(text: str) -> None:
    """Print one line of a result, however long."""
    _console().print(_printable(text), soft_wrap=True, markup=False, highlight=False)


def say(text: str, head: str = "") -> None:
    """Print one line on stderr."""
    from rich.text import Text

    line = Text.assemble((head, "bold red"), _printable(" ".join(text.split())))
    _console(stderr=True).print(line, soft_wrap=True)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else 200, force_terminal=terminal)


def _printable(text: str) -> str:
    """Drop control characters: a vault from elsewhere must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text.replace("\u00a0", " "))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that share their keys, the titles, as a table."""
    if not rows:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = _console()
    roomy = console.width >= 120
    table = Table(box=box.SIMPLE_HEAD, padding=(0, int(roomy)), show_edge=False)
    cells = [
        [_printable(f"{v:.4g}" if isinstance(v, float) else str(v)) for v in row.values()]
        for row in rows
    ]
    for title, column in zip(rows[0], zip(*cells, strict=True), strict=True):
        words = all(cell[:1].isalpha() for cell in column)
        widest = min(max(map(len, column)), 12)  # only titles and long cells may wrap
        table.add_column(Text(title), justify="left" if words else "right", min_width=widest)
    for line in cells:
        table.add_row(*map(Text, line))
    console.print(table)


def print_attacks(results: Mapping[str, Any]) -> None:
    """Print the threat matrix: a line for each row, and what did not work."""
    shown = []
    if results.get("attack"):
        print_line(unattacked(results) or f"attacks      {results['attack']}")
    for row in results["rows"]:
        if row["metric"] == "check":
            continue
        value, worst, clean = (row[key] for key in ("value", "worst", "clean_accuracy"))
        shown.append(
            {
                "family": row["family"],
                "target": row["target"],
                "attack": row["attack"],
                "measures": row["metric"],
                "value [95 % CI]": _rate(value) if value else row["status"],
                "worst": f"{100 * worst['value']:.1f} %" if worst else "-",
                "clean": f"{100 * clean['value']:.1f} %" if clean else "-",
                "threat": row["threat"],
            }
        )
    print_table(shown)
    for row in results["rows"]:
        if row["metric"] == "check":
            passed = row["extra"].get("passed")
            print_line(f"check        {'passed' if passed else 'FAILED'}: {row['threat']}")
    for row in results["rows"]:
        if row["status"] in ("failed", "died"):
            print_line(f"{row['status']:12} {row['family']}, {row['target']}: {row['note']}")
    seconds = results["seconds"]
    print_line(
        f"{results['cases']} cases, {results['reused']} of them reused; "
        f"{duration(seconds['wall'])}, {duration(seconds['cpu'])} of CPU time"
    )
    if results["quick"]:
        print_line("quick: a smoke test, no evidence; leave --quick out for numbers to quote")


def _rate(rate: Mapping[str, float]) -> str:
    return f"{100 * rate['value']:.1f} % [{100 * rate['low']:.1f}–{100 * rate['high']:.1f}]"


def when(seconds: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Write a time, in seconds since 1970, as local date and time."""
    return datetime.fromtimestamp(seconds).strftime(form)


def duration(seconds: float) -> str:
    """Write a time span in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


# --- a vault at a glance -------------------------------------------------------------------------


def print_population(vault: Vault, settings: Settings) -> None:
    """Say what members there are, how accurate, and in how many basins."""
    members, base = vault.entries("member"), vault.entry("base")
    recipes = sorted({str(member.info.get("recipe")) for member in members})
    wanted = len(members) if recipes == ["adopted"] else settings.population.members
    text = f"{len(members)} of {wanted} members"
    if members:
        scores = [float(member.info["accuracy"]) for member in members]
        basins = len({member.info["basin"] for member in members})
        text += f" ({', '.join(recipes)}) in {basins} basin{'s' if basins > 1 else ''}, accuracy"
        text += (
            f" min {min(scores):.2%}, mean {sum(scores) / len(scores):.2%}, max {max(scores):.2%}"
        )
    print_line(f"population   {text}")
    h = settings.harden
    how = f" ({h.method}, {h.steps} steps, eps {h.eps or 'of the task'}, norm {h.norm})"
    named = [name + how * (name == "adversarial") for name in h.recipe]
    print_line(f"hardened by  {', '.join(named) or 'nothing: plain training'}")
    score = f"accuracy {float(base.info['accuracy']):.2%}" if base else "none yet"
    print_line(f"base         {score}")


def print_generations(vault: Vault, last: int) -> None:
    """List the last generations and say why candidates were rejected."""
    generations, live, exposed = vault.generations(), vault.live(), set(vault.exposures())
    rejections = vault.rejections()
    print_line(f"generations  {len(generations)}, live: {live or 'none yet'}")
    rows, before = [], 0.0
    titles = _gate_titles(generations[-last:])
    for made in generations:
        state = "live" if made.number == live else "past" if made.number in exposed else "kept"
        rejected = sum(before <= item.get("at", 0.0) < made.created for item in rejections)
        rows.append(_row(made, state, titles) | {"rejected": str(rejected or "-")})
        before = made.created
    if len(rows) > last:
        print_line(f"(the last {last}; see --last)")
    print_table(rows[-last:])
    print_line(f"rejected     {len(rejections)} candidates" + (", because" if rejections else ""))
    reasons = Counter(reason for item in rejections for reason in item.get("reasons", []))
    for reason, times in list(reasons.items())[-5:]:
        print_line(f"  {reason}" + (f" ({times} times)" if times > 1 else ""))


def _gate_titles(generations: Sequence[GenerationRecord]) -> list[str]:
    """A column for every gate that one of the generations passed, however little is known of it."""
    known = [title for title, _ in _GATES.values()]
    found = [title for made in generations for title, _, _ in measures(made.manifest)]
    return [title for title in dict.fromkeys([*known, *found]) if title not in _FIXED]


def _row(made: GenerationRecord, state: str, titles: Sequence[str]) -> dict[str, str]:
    measured = {title: value for title, value, _ in measures(made.manifest)}
    cpu, figures = made.manifest.get("cpu_seconds"), made.manifest.get("figures", {})
    return {
        "number": str(made.number),
        "state": state,
        "made": when(made.created, "%m-%d %H:%M"),
        **{title: measured.get(title, "-") for title in titles},
        "robust": f"{figures['robust_accuracy']:.2%}" if "robust_accuracy" in figures else "-",
        "CPU s": "-" if cpu is None else f"{cpu:.2f}",
    }


def measures(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and limit of every gate of a manifest but the yes-or-no one."""
    for gate in manifest.get("gates", []):
        if gate["gate"] != "finite":
            title, form = _GATES.get(gate["gate"], (gate["gate"], "{:g}"))
            title, form = str(gate.get("title", title)), "{:.2%}" if gate.get("share") else form
            yield title, form.format(gate["value"]), form.format(gate["limit"])


def commented(settings: Settings) -> str:
    """Write settings as TOML; each line ends with its field's meaning and range."""
    lines: list[str] = []
    known: dict[str, str] = {}
    for line in settings.to_toml().splitlines():
        if line.startswith("["):
            part = getattr(settings, line[1:-1])
            known = {item.name: meaning(item) for item in dataclasses.fields(part)}
        text = known.get(line.partition(" = ")[0])
        lines.append(f"{line}  # {text}" if text else line)
    return "\n".join(lines)


# --- progress ------------------------------------------------------------------------------------


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Show `progress(stage, done, total)`: a bar for each stage, or lines where there is none."""
    if not sys.stdout.isatty():
        yield _lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=_console()) as bars:
        shown: dict[str, Any] = {}

        def show_bar(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(stage, total=total)
            bars.update(shown[stage], completed=done, total=total)

        yield show_bar


def _lines() -> Progress:
    """Print a line when a stage begins, ends, or has gone on by a tenth."""
    tenths: dict[str, int] = {}
    began: dict[str, float] = {}

    def show_line(stage: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if tenth > tenths.get(stage, -1):
            tenths[stage] = tenth
            now = time.monotonic()
            elapsed = now - began.setdefault(stage, now)
            say(f"{stage}: {done} of {total}" + (f", {duration(elapsed)}" if elapsed else ""))

    return show_line
