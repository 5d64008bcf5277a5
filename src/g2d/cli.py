"""The command line: thin commands over `Defence` and `Vault`, what they print, how they fail.

Imports lazily: `g2d --help` knows no torch. Results go to stdout; errors, and the progress lines
that stand in for bars where stdout is no terminal, go to stderr. No decision about a defence is
made here.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import time
import traceback as tracebacks
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from g2d.errors import G2DError, SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from g2d.defence import Defence
    from g2d.settings import Settings
    from g2d.vault import Generation, Vault

Progress = Callable[[str, int, int], None]

_INTERRUPTED = "interrupted; what is complete is kept, run the same command again to go on"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class _Commands(TyperGroup):
    """The commands, with one way out: an error is one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; 1 after an error, 130 after Ctrl-C (usage errors are typer's: 2)."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say(_INTERRUPTED)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # What is still buffered must not fail once more when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (G2DError, OSError) as error:
            if ctx.params.get("traceback"):
                tracebacks.print_exc()
            _say(_reason(error), "error: ")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    name="g2d",
    help="Generate to Defend: fresh parameters for a deployed classifier, rotated like passwords.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    app()


VaultPath = Annotated[Path, typer.Argument(metavar="VAULT", help="Folder of the vault.")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="Where the task's data lies.")
]
Workers = Annotated[
    int | None, typer.Option(min=0, max=1024, help="Worker processes; 0: one per core.")
]
Zoo = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Take the checkpoints that you have.")
]


def _version(asked: bool) -> None:
    if asked:
        from g2d import __version__

        typer.echo(f"g2d {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(envvar="G2D_TRACEBACK", help="Show the full trace of an error.")
    ] = False,
) -> None:
    """Take the options that precede every command."""


# --- commands ------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the report goes.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of all draws.")] = 0,
    workers: Workers = None,
) -> None:
    """See the whole idea work on handwritten digits, in three minutes."""
    _calm_torch()
    from g2d.demo import run

    began = time.monotonic()
    with _progress() as progress:
        summary = run(out=out, seed=seed, workers=workers or 0, progress=progress)
    _print_table(summary["table"])
    _print(f"Report:  {out / 'report.html'}")
    _print(f"Numbers: {out / 'summary.json'}")
    _print(f"Done in {_duration(time.monotonic() - began)}.")


@app.command()
def population(
    vault: VaultPath,
    task: Annotated[
        str | None, typer.Option(help="digits, mnist, cifar10 or your own module:factory.")
    ] = None,
    data: DataFolder = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; flags override them.")
    ] = None,
    members: Annotated[int | None, typer.Option(help="Number of checkpoints.")] = None,
    recipe: Annotated[str | None, typer.Option(help="repelled, forks or seeds.")] = None,
    basins: Annotated[int | None, typer.Option(help="Independent early checkpoints.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all draws.")] = None,
    eps: Annotated[
        float | None, typer.Option(help="Attack budget, L-infinity; 0: the task's own.")
    ] = None,
    workers: Workers = None,
    from_checkpoints: Zoo = None,
) -> None:
    """Make a vault and train its population, or go on where an earlier run stopped."""
    if from_checkpoints and (members, recipe, basins) != (None, None, None):
        raise typer.BadParameter(
            "--from-checkpoints takes the folder as it is; drop --members, --recipe and --basins"
        )
    flags = {
        "task__name": task,
        "task__data": None if data is None else str(data.absolute()),
        "task__eps": eps,
        "population__members": members,
        "population__recipe": recipe,
        "population__basins": basins,
        "population__seed": seed,
        "population__workers": workers,
    }
    defence, count = _prepare(vault, settings, flags)
    with defence:
        with _progress() as progress:
            _populate(defence, from_checkpoints, count, progress)
        _print_population(defence.vault, defence.settings)
    _print(f"Next: g2d fit {vault}")


@app.command()
def fit(
    vault: VaultPath,
    again: Annotated[bool, typer.Option("--again", help="Fit anew, even if it is there.")] = False,
    data: DataFolder = None,
) -> None:
    """Fit the generator (autoencoder and latent diffusion) on the population."""
    with _open(vault, data) as defence, _progress() as progress:
        before = defence.vault.entry("generator")
        defence.fit(progress, again)
        fresh = defence.vault.entry("generator") != before
        live = defence.vault.live()
    _print(
        "The generator is fitted." if fresh else "The generator was there already (see --again)."
    )
    _print(f"Generation {live} is live. Next: g2d generate {vault}")


@app.command()
def generate(
    vault: VaultPath,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="For reproduction only; else 256 secret bits.")
    ] = None,
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", " /--keep", help="Make each one live.")
    ] = True,
    data: DataFolder = None,
) -> None:
    """Generate the next parameters, judge them by the gates and make them live."""
    with _open(vault, data) as defence, _progress() as progress:
        for index in range(count):
            (made,) = defence.generate(
                seed=seed,
                activate=activate,
                progress=lambda stage, done, total, i=index: progress(  # type: ignore[misc]
                    stage, i * total + done, count * total
                ),
                on_reject=lambda results: _print(
                    "rejected: " + "; ".join(r.reason for r in results if not r.passed)
                ),
            )
            state = "live" if activate else "kept, not live"
            parts = [
                f"{title} {value} (limit {limit})"
                for title, value, limit in _measures(made.manifest)
            ]
            parts.append(f"{made.manifest['cpu_seconds']:.2f} CPU s")
            _print(f"generation {made.number} ({state}): " + ", ".join(parts))


@app.command()
def show(
    vault: VaultPath,
    last: Annotated[int, typer.Option(min=1, help="How many generations to list.")] = 20,
) -> None:
    """Show a vault at a glance; it may be read-only or in use."""
    from g2d.settings import Settings
    from g2d.vault import Vault

    with Vault.open(vault) as opened:
        settings = Settings.from_toml(opened.settings_text, str(opened.path / "task.toml"))
        task = settings.task
        budget = f"{task.eps:g}" if task.eps else "the task's own"
        _print(f"vault        {opened.path}")
        _print(f"task         {task.name}, eps {budget}" + (f", {task.data}" if task.data else ""))
        _print_population(opened, settings)
        generator = opened.entry("generator")
        _print(f"generator    {f'fitted {_when(generator.created)}' if generator else 'none yet'}")
        _print_generations(opened, last)


@app.command()
def export(
    vault: VaultPath,
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="File to write.")],
    number: Annotated[int | None, typer.Option(help="Generation; the live one by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Write a generation as a plain safetensors state dict, its digest verified."""
    from g2d.vault import Vault

    if out.exists() and not force:
        raise G2DError(f"{out} exists; name another file, or overwrite it with --force")
    with Vault.open(vault) as opened:
        number = opened.live() if number is None else number
        if number is None:
            raise G2DError(f"{opened.path} has no generation yet; run `g2d fit` first")
        weights = opened.read_generation(number)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(weights)
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _print(
        f"generation {number} is in {out}: model.load_state_dict(safetensors.torch.load_file(..))"
    )


@app.command()
def settings(
    vault: Annotated[
        Path | None, typer.Argument(metavar="[VAULT]", help="Folder of the vault.")
    ] = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Of no vault: the defaults.")
    ] = False,
) -> None:
    """Print all settings as TOML, each with its meaning."""
    from g2d.settings import Settings

    if (vault is None) == (not defaults):
        raise typer.BadParameter("name a VAULT, or give --defaults")
    if vault is None:
        typer.echo("# Keep only the lines that you change: a task has its own values for others.")
        typer.echo(_commented(Settings()))
    else:
        typer.echo(_commented(_vault_settings(vault)))


# --- opening -------------------------------------------------------------------------------------


def _calm_torch() -> None:
    """Give torch one thread: on a busy machine more of them were up to 60 times slower."""
    threads = os.environ.get("G2D_THREADS", "1")
    if not threads.isdecimal() or int(threads) < 1:
        raise SettingsError(f"G2D_THREADS is {threads!r}, expected a number of threads, 1 or more")
    import torch

    torch.set_num_threads(int(threads))


def _open(path: Path, data: Path | None) -> Defence:
    """Open a vault for writing; what is wrong with it is said before torch is imported."""
    _vault_settings(path)
    _calm_torch()
    from g2d.defence import Defence

    return Defence.open(path, data="" if data is None else str(data.absolute()))


def _vault_settings(path: Path) -> Settings:
    from g2d.settings import Settings
    from g2d.vault import Vault

    with Vault.open(path) as vault:
        return Settings.from_toml(vault.settings_text, str(vault.path / "task.toml"))


def _prepare(path: Path, file: Path | None, flags: Mapping[str, Any]) -> tuple[Defence, int]:
    """Make or open a vault; return it with the number of workers to use.

    Settings come from flags, then the file, then the vault's own or else the task's defaults.
    """
    from g2d.settings import Settings

    asked = (Settings.from_file(file) if file else Settings()).override(**flags)
    there = _vault_settings(path) if (path / "ledger.sqlite").exists() else None
    _calm_torch()
    from g2d.defence import Defence

    base = dataclasses.asdict(there) if there else _task_defaults(asked)
    full = _layered(base, file).override(**flags)
    if full.task.data:
        full = full.override(task__data=str(Path(full.task.data).absolute()))
    workers = full.population.workers
    if there is None:
        return Defence.create(full.task.name, path, full), workers
    full = full.override(population__workers=there.population.workers)
    if full.override(task__data=there.task.data) == there:
        return Defence.open(path, data=full.task.data), workers
    return Defence.create(full.task.name, path, full), workers


def _populate(defence: Defence, zoo: Path | None, workers: int, progress: Progress) -> None:
    from g2d.engine import LocalEngine

    if zoo:
        defence.adopt(zoo, progress)
        return
    with LocalEngine(workers) as engine:
        defence.populate(engine, progress)


def _task_defaults(asked: Settings) -> dict[str, Any]:
    from g2d.population import resolve

    task = asked.task
    return dict(resolve((task.name, task.data, task.split_seed, task.eps)).settings)


def _layered(base: Mapping[str, Any], file: Path | None) -> Settings:
    """Put what the file says over `base`; the file has been read and checked before."""
    import tomllib

    from g2d.settings import Settings, build

    tables = {section: dict(table) for section, table in base.items()}
    for section, table in tomllib.loads(file.read_text("utf-8")).items() if file else ():
        tables.setdefault(section, {}).update(table)
    return build(Settings, tables, str(file or "settings"))


# --- printing ------------------------------------------------------------------------------------


def _print_population(vault: Vault, settings: Settings) -> None:
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
    _print(f"population   {text}")
    score = f"accuracy {float(base.info['accuracy']):.2%}" if base else "none yet"
    _print(f"base         {score}")


def _print_generations(vault: Vault, last: int) -> None:
    generations, live, exposed = vault.generations(), vault.live(), set(vault.exposures())
    rejections = vault.rejections()
    _print(f"generations  {len(generations)}, live: {live or 'none yet'}")
    rows, before = [], 0.0
    for made in generations:
        state = "live" if made.number == live else "past" if made.number in exposed else "kept"
        rejected = sum(before <= item.get("at", 0.0) < made.created for item in rejections)
        rows.append(_row(made, state) | {"rejected": str(rejected or "-")})
        before = made.created
    if len(rows) > last:
        _print(f"(the last {last}; see --last)")
    _print_table(rows[-last:])
    _print(f"rejected     {len(rejections)} candidates")
    reasons = Counter(reason for item in rejections for reason in item.get("reasons", []))
    for reason, times in list(reasons.items())[-5:]:
        _print(f"  {reason}" + (f" ({times} times)" if times > 1 else ""))


def _row(made: Generation, state: str) -> dict[str, str]:
    measured = {title: value for title, value, _ in _measures(made.manifest)}
    cpu = made.manifest.get("cpu_seconds")
    return {
        "number": str(made.number),
        "state": state,
        "made": _when(made.created, "%m-%d %H:%M"),
        **{title: measured.get(title, "-") for title, _ in _GATES.values()},
        "CPU s": "-" if cpu is None else f"{cpu:.2f}",
    }


_GATES = {
    "accuracy": ("accuracy drop bound", "{:.2%}"),
    "class": ("class drop", "{:.2%}"),
    "distance": ("distance", "{:.4f}"),
    "stale_asr": ("stale ASR", "{:.2%}"),
}


def _measures(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and limit of every gate of a manifest but the yes-or-no one."""
    for gate in manifest.get("gates", []):
        if gate["gate"] != "finite":
            title, form = _GATES.get(gate["gate"], (gate["gate"], "{:g}"))
            yield title, form.format(gate["value"]), form.format(gate["limit"])


def _commented(settings: Settings) -> str:
    """Write settings as TOML; each line ends with its field's meaning and range."""
    lines: list[str] = []
    docs: dict[str, Mapping[Any, Any]] = {}
    for line in settings.to_toml().splitlines():
        if line.startswith("["):
            part = getattr(settings, line[1:-1])
            docs = {item.name: item.metadata for item in dataclasses.fields(part)}
        about = docs.get(line.partition(" = ")[0], {})
        text = about.get("doc", "")
        if "range" in about:
            text += " [{}, {}]".format(*about["range"])
        if "choices" in about:
            text += f" ({', '.join(about['choices'])})"
        lines.append(f"{line}  # {text}" if text else line)
    return "\n".join(lines)


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
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


def _print(text: str) -> None:
    """Print one line of a result, however long."""
    _console().print(_printable(text), soft_wrap=True, markup=False, highlight=False)


def _say(text: str, head: str = "") -> None:
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
    return "".join(c if c.isprintable() else "?" for c in text)


def _reason(error: G2DError | OSError) -> str:
    if isinstance(error, G2DError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _NO_ROOM:
        return f"{where}the disk is full. Free some space and run the same command again."
    return f"{where}{error.strerror or error}"


def _when(seconds: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return datetime.fromtimestamp(seconds).strftime(form)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


# --- progress ------------------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Progress]:
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
            _say(f"{stage}: {done} of {total}" + (f", {_duration(elapsed)}" if elapsed else ""))

    return show_line
