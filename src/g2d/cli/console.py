"""What the terminal shows: lines, tables, a vault at a glance; not the commands.

Results go to stdout, errors to stderr; how far work has come is in `progress`. Imports rich lazily
and knows no torch.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2d.cli.flags import meaning
from g2d.core.shares import wilson
from g2d.errors import DAMAGE, G2DError, VaultError
from g2d.report.controls import controls, measured
from g2d.report.results import read_results, results_path, unattacked
from g2d.vault.basin_costs import basin_lines
from g2d.vault.basins import GROWN_MEMBER
from g2d.vault.federated import FEDERATED
from g2d.vault.records import RENEWAL

if TYPE_CHECKING:
    from rich.console import Console

    from g2d.defence.gates import GateResult
    from g2d.settings import Settings
    from g2d.vault.vault import Entry, GenerationRecord, Vault


_GATES = {
    "accuracy": ("accuracy drop bound", "{:.2%}"),
    "class": ("class drop", "{:.2%}"),
    "distance": ("distance", "{:.4f}"),
    "stale_asr": ("stale ASR", "{:.2%}"),
}
"""Titles and number formats of gates whose entries in manifests bring none; others show anyway."""
_RATES = ("stale_asr", "robust")
"""Gates whose value is a share of examples; a drop or a bound has no interval of that kind."""
_MOST_DAMAGE = 5  # lines of what is damaged
_FIXED = ("number", "state", "made", "robust", "CPU s", "rejected")
"""Columns that are not gates'; the robust gate's value is one of a generation's figures."""


# --- lines and tables ----------------------------------------------------------------------------


def print_line(text: str) -> None:
    """Print one line of a result, however long."""
    console().print(_printable(text), soft_wrap=True, markup=False, highlight=False)


def say(text: str, head: str = "") -> None:
    """Print one line on stderr."""
    from rich.text import Text

    line = Text.assemble((head, "bold red"), _printable(" ".join(text.split())))
    console(stderr=True).print(line, soft_wrap=True)


def console(stderr: bool = False) -> Console:
    """Rich's console on stdout or stderr: wide where it is no terminal."""
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

    terminal = console()
    roomy = terminal.width >= 120
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
    terminal.print(table)


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
            text = f"check        {'passed' if passed else 'FAILED'}: {row['threat']}"
            why = str(row["note"]).removeprefix("FAILED: ") or "no reason was given"
            print_line(text if passed else f"{text}, on {row['target']}: {why}")
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
    damaged: list[str] = []
    members, base = vault.entries("member", damaged.append), vault.entry("base")
    for text in damaged[:_MOST_DAMAGE]:
        print_line(f"damaged      {text}")
    try:
        _print_population(members, base, settings)
    except DAMAGE as error:
        raise VaultError(
            f"{vault.path}: notes of the population are damaged ({type(error).__name__}: {error});"
            " see `g2d verify`, and restore the vault from a backup"
        ) from error


def _print_population(members: Sequence[Entry], base: Entry | None, settings: Settings) -> None:
    recipes = sorted({str(member.info.get("recipe")) for member in members})
    wanted = (
        len(members)
        if recipes in (["adopted"], ["refreshed"])
        else settings.population.members + sum(m.index % RENEWAL >= GROWN_MEMBER for m in members)
    )
    text = f"{len(members)} of {wanted} members"
    if members:
        scores = [float(member.info["accuracy"]) for member in members]
        basins = len({member.info["basin"] for member in members})
        text += f" ({', '.join(recipes)}) in {basins} basin{'s' if basins > 1 else ''}, accuracy"
        low, high = (
            next(m for m in members if m.info["accuracy"] == s) for s in (min(scores), max(scores))
        )
        text += f" min {_accuracy(low)}, mean {sum(scores) / len(scores):.2%}"
        text += f", max {_accuracy(high)}{_examples(low)}"
    print_line(f"population   {text}")
    h = settings.harden
    how = f" ({h.method}, {h.steps} steps, eps {h.eps or 'of the task'}, norm {h.norm})"
    named = [name + how * (name == "adversarial") for name in h.recipe]
    print_line(f"hardened by  {', '.join(named) or 'nothing: plain training'}")
    score = f"accuracy {_accuracy(base)}{_examples(base)}" if base else "none yet"
    print_line(f"base         {score}")
    if base and (told := base.info.get(FEDERATED)):
        print_line(f"trained by   {_clients(told)}")
    labels = list(base.info.get("labels", ())) if base else []
    if labels:
        shown = ", ".join(f"{index} {name}" for index, name in enumerate(labels[:12]))
        more = f" and {len(labels) - 12} more" if len(labels) > 12 else ""
        print_line(f"labels       {shown}{more}")


def _clients(told: Mapping[str, Any]) -> str:
    """Which clients trained a population, as its base notes it."""
    one = " of one process (a simulation)" if told["simulated"] else ""
    text = f"{told['clients']} clients{one}, rule {told['rule']}, f = {told['f']}"
    if told.get("malicious"):
        text += f"; {told['malicious']} of them malicious: {told['attack']}"
    return text


def print_basins(vault: Vault) -> None:
    """Say what basins there are and what they cost, where any was grown."""
    for index, line in enumerate(basin_lines(vault)):
        print_line(f"{'' if index else 'basins':<13}{line}")


def _accuracy(kept: Entry) -> str:
    return rate(float(kept.info["accuracy"]), int(kept.info.get("examples", 0)))


def _examples(kept: Entry) -> str:
    n = kept.info.get("examples")
    return f" of {n} gate examples [95 % interval]" if n else " (n was not kept: an older vault)"


def rate(value: float, n: int, form: str = "{:.2%}") -> str:
    """Write a share of `n` examples with its 95 % interval (Wilson's); 0: n is not known."""
    text = form.format(value)
    if not n:
        return text
    low, high = wilson(min(n, value * n), n)
    return f"{text} [{100 * low:.1f}–{100 * high:.1f}]"


def print_generations(vault: Vault, last: int) -> None:
    """List the last generations and say why candidates were rejected."""
    damaged: list[str] = []
    generations = vault.generations(damaged.append)
    live, exposed = vault.live(), set(vault.exposures())
    rejections = vault.rejections(damaged.append)
    print_line(f"generations  {len(generations)}, live: {live or 'none yet'}")
    rows, before = [], 0.0
    shown = [made for made in generations if _can_be_shown(made, damaged)]
    times = [t for item in rejections if isinstance(t := item.get("at", 0.0), int | float)]
    titles = _gate_titles(shown[-last:])
    for made in shown:
        state = "live" if made.number == live else "past" if made.number in exposed else "kept"
        rejected = sum(before <= at < made.created for at in times)
        rows.append(_row(made, state, titles) | {"rejected": str(rejected or "-")})
        before = made.created
    if len(rows) > last:
        print_line(f"(the last {last}; see --last)")
    print_table(rows[-last:])
    print_line(f"rejected     {len(rejections)} candidates" + (", because" if rejections else ""))
    said = [item["reasons"] for item in rejections if isinstance(item.get("reasons"), list)]
    reasons = Counter(str(reason) for each in said for reason in each)
    for reason, often in list(reasons.items())[-5:]:
        print_line(f"  {reason}" + (f" ({often} times)" if often > 1 else ""))
    for text in damaged[:_MOST_DAMAGE]:
        print_line(f"damaged      {text}")
    if damaged:
        more = len(damaged) - _MOST_DAMAGE
        print_line((f"and {more} more; " if more > 0 else "") + f"see `g2d verify {vault.path}`")


def _can_be_shown(made: GenerationRecord, damaged: list[str]) -> bool:
    """Whether a manifest's values are such as can be shown; what is odd joins `damaged`."""
    try:
        _row(made, "", [title for title, _, _ in measures(made.manifest, intervals=True)])
    except (*DAMAGE, OSError) as error:
        damaged.append(f"the manifest of generation {made.number} is odd ({type(error).__name__})")
        return False
    return True


def print_controls(vault: Path) -> None:
    """Put the next generation beside what decides whether to buy, as `g2d attack` measured it."""
    path, results = results_path(vault), None
    why = f"run `g2d attack {vault} --threat stale`"
    try:
        if path.exists():
            results = read_results(path)
        found = controls(results)
    except (G2DError, LookupError, TypeError, ValueError, AttributeError):
        found, why = controls(None), f"{path} cannot be read; {why} again"
    if not measured(found):
        print_line(f"controls     not measured (hardened retraining, retraining on exposed): {why}")
        return
    quick = ", by a quick run: no evidence" if results and results.get("quick") else ""
    print_line(f"controls     under the same attacks, made on exposed generations{quick}")
    print_table(found)


def _gate_titles(generations: Sequence[GenerationRecord]) -> list[str]:
    """A column for every gate that one of the generations passed, however little is known of it."""
    known = [title for title, _ in _GATES.values()]
    found = [title for made in generations for title, _, _ in measures(made.manifest)]
    return [title for title in dict.fromkeys([*known, *found]) if title not in _FIXED]


def _row(made: GenerationRecord, state: str, titles: Sequence[str]) -> dict[str, str]:
    measured = {title: value for title, value, _ in measures(made.manifest, intervals=True)}
    cpu, figures = made.manifest.get("cpu_seconds"), made.manifest.get("figures", {})
    return {
        "number": str(made.number),
        "state": state,
        "made": when(made.created, "%m-%d %H:%M"),
        **{title: measured.get(title, "-") for title in titles},
        "robust": rate(figures["robust_accuracy"], figures.get("robust_examples", 0))
        if "robust_accuracy" in figures
        else "-",
        "CPU s": "-" if cpu is None else f"{cpu:.2f}",
    }


def measures(
    manifest: Mapping[str, Any], intervals: bool = False
) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and limit of every gate of a manifest but the yes-or-no one.

    Args:
        intervals: write rates (not drops, nor bounds) with n and interval, where n was kept.
    """
    for gate in manifest.get("gates", []):
        if gate["gate"] != "finite":
            title, form = _GATES.get(gate["gate"], (gate["gate"], "{:g}"))
            title, form = str(gate.get("title", title)), "{:.2%}" if gate.get("share") else form
            value = form.format(gate["value"])
            if intervals and gate["gate"] in _RATES and gate.get("n"):
                value = f"{rate(gate['value'], gate['n'], form)} of {gate['n']}"
            yield title, value, form.format(gate["limit"])


def print_rejected(results: Sequence[GateResult]) -> None:
    """Say why a candidate was rejected."""
    print_line("rejected: " + "; ".join(r.reason for r in results if not r.passed))


def print_made(number: int, manifest: Mapping[str, Any], state: str) -> None:
    """Say what a generation that was made measures by its gates, and what it cost."""
    parts = [f"{title} {value} (limit {limit})" for title, value, limit in measures(manifest)]
    parts.append(f"{manifest['cpu_seconds']:.2f} CPU s")
    print_line(f"generation {number} ({state}): " + ", ".join(parts))


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
