"""The command line: thin commands over `Defence` and `Vault`.

Imports lazily: `g2d --help` knows no torch. What the terminal shows is in `console`, how commands
fail in `failures`, how a vault is got at in `shared`; `serve`, `keys`, `audit`, `watermark` and the
commands that only look at a vault have files of their own. No decision about a defence is here.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli import attest_confidential as cli_attest_confidential
from g2d.cli import audit as cli_audit
from g2d.cli import canary as cli_canary
from g2d.cli import check as cli_check
from g2d.cli import client as cli_client
from g2d.cli import federated as cli_federated
from g2d.cli import grow as cli_grow
from g2d.cli import keys as cli_keys
from g2d.cli import privacy_group as cli_privacy
from g2d.cli import refresh as cli_refresh
from g2d.cli import serve as cli_serve
from g2d.cli import smpc as cli_smpc
from g2d.cli import trace as cli_trace
from g2d.cli import vault_commands, vault_group
from g2d.cli import watermark as cli_watermark
from g2d.cli.console import (
    duration,
    print_attacks,
    print_line,
    print_made,
    print_population,
    print_rejected,
    print_table,
    say,
)
from g2d.cli.failures import Commands
from g2d.cli.flags import Given, Set, merged, read_changes, with_flags
from g2d.cli.progress import show_progress
from g2d.cli.shared import (
    AcceptCode,
    DataFolder,
    EngineName,
    RayAddress,
    Seal,
    TaskPath,
    VaultPath,
    Workers,
    code_to_load,
    configure_torch,
    make_engine,
    open_defence,
    prepare,
    seal_from_now,
    task_path_again,
    vault_settings,
)
from g2d.core.search_path import leave_current_folder, refuse_vaults
from g2d.errors import G2DError, SettingsError
from g2d.settings import Settings

if TYPE_CHECKING:
    from g2d.core.engine import LocalEngine
    from g2d.core.ray_engine import RayEngine
    from g2d.defence.defence import Defence

app = typer.Typer(
    cls=Commands,
    name="g2d",
    help="Generate to Defend: fresh parameters for a deployed classifier, rotated like passwords.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(cli_keys.app)
app.add_typer(vault_group.app)
app.add_typer(cli_audit.app)
app.add_typer(cli_attest_confidential.app)  # the same, with its last command
app.add_typer(cli_watermark.app)
app.add_typer(cli_canary.app)
app.add_typer(cli_privacy.app)
app.add_typer(cli_federated.app)
app.add_typer(cli_smpc.app)
app.add_typer(cli_client.app)


def main() -> None:
    """Run the command line."""
    leave_current_folder()
    app()


_MADE = {f"population__{name}" for name in ("members", "recipe", "basins")} | {"harden__recipe"}
Zoo = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Adopt the checkpoints in this folder.")
]


def _version(asked: bool) -> None:
    if asked:
        from g2d import __version__

        typer.echo(f"g2d {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(envvar="G2D_TRACEBACK", help="Show the full trace of an error.")
    ] = False,
    custodian: Annotated[
        str,
        typer.Option(metavar="CUSTODIAN", help="Open sealed vaults by it; else $G2D_CUSTODIAN."),
    ] = "",
) -> None:
    """Take the options that precede every command."""
    vault_group.name_custodian(context, custodian)
    refuse_vaults()


# --- commands ------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the report.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of all draws.")] = 0,
    workers: Workers = None,
) -> None:
    """See the whole idea work on handwritten digits, in three minutes."""
    configure_torch()
    from g2d.cli.demo import run

    began = time.monotonic()
    with show_progress() as progress:
        summary = run(out=out, seed=seed, workers=workers or 0, progress=progress)
    print_table(summary["table"])
    print_line(f"Report:  {out / 'report.html'}")
    print_line(f"Numbers: {out / 'summary.json'}")
    print_line(f"Next:    g2d serve {out / 'vault'} --key {out / 'keys/signing.pub'} --every 60s")
    print_line(f"Done in {duration(time.monotonic() - began)}.")


@app.command()
@with_flags(
    Settings,
    into="given",
    names={
        "task": "task__name",
        "data": "task__data",
        "members": "population__members",
        "recipe": "population__recipe",
        "basins": "population__basins",
        "seed": "population__seed",
        "eps": "task__eps",
        "device": "task__device",
        "workers": "population__workers",
        "harden": "harden__recipe",
    },
    defaults=False,  # a task, or the vault that is there, has its own
)
def population(
    vault: VaultPath,
    given: Given,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; flags override them.")
    ] = None,
    changes: Set = None,
    engine: EngineName = "local",
    ray_address: RayAddress = "",
    base: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Take this model as the base.")
    ] = None,
    from_checkpoints: Zoo = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
    seal: Seal = "",
) -> None:
    """Make a vault and train its population, or go on where an earlier run stopped."""
    flags = merged(given, read_changes(changes or ()))
    if from_checkpoints and (base is not None or _MADE & flags.keys()):
        raise typer.BadParameter(
            "--from-checkpoints takes the folder as it is; drop --members, --recipe, --basins, "
            "--base and --harden"
        )
    defence, count = prepare(vault, settings, flags, accept_code)
    with defence:
        seal_from_now(defence.vault, seal)
        _note_few_gate_examples(defence)
        with show_progress() as progress:
            if from_checkpoints:
                defence.adopt(from_checkpoints, progress, print_line)
            else:
                if base is not None:
                    from g2d.interop.bases import read_base

                    defence.adopt_base(read_base(defence.task, base), print_line)
                with make_engine(engine, ray_address, count, vault) as jobs:
                    defence.populate(jobs, progress, tell=say)
        print_population(defence.vault, defence.settings)
    print_line(f"Next: g2d fit {vault}{task_path_again(task_path)}")


def _note_few_gate_examples(defence: Defence) -> None:
    """Say before the training what `g2d generate` would refuse after it; settings can change."""
    from g2d.defence.refusal import check_gate_split

    try:
        check_gate_split(len(defence.task.splits.gate), defence.settings)
    except SettingsError as error:
        say(str(error), "note: ")


@app.command()
def fit(
    vault: VaultPath,
    again: Annotated[
        bool, typer.Option("--again", help="Fit again, even if there is one.")
    ] = False,
    data: DataFolder = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Fit the generator (autoencoder and latent diffusion) on the population."""
    with open_defence(vault, data, accept_code) as defence, show_progress() as progress:
        before = defence.vault.entry("generator")
        defence.fit(progress, again)
        fresh = defence.vault.entry("generator") != before
        live = defence.vault.live()
    print_line(
        "The generator is fitted."
        if fresh
        else "The generator was there already; fit it again with --again."
    )
    found_in = task_path_again(task_path)
    print_line(f"Generation {live} is live. Next: g2d generate {vault}{found_in}")


@app.command()
def generate(
    vault: VaultPath,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many to make.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="To reproduce one; else 256 secret bits are drawn.")
    ] = None,
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", " /--keep", help="Make each one live.")
    ] = True,
    data: DataFolder = None,
    engine: EngineName = "local",
    ray_address: RayAddress = "",
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Generate the next parameters, judge them by the gates and make them live.

    With `--engine ray` all of a generation's candidates are made at once, as tasks.
    """
    with ExitStack() as stack:
        defence = stack.enter_context(open_defence(vault, data, accept_code))
        jobs: LocalEngine | RayEngine | None = None
        if engine != "local":
            jobs = make_engine(engine, ray_address, 0, vault)
            stack.enter_context(jobs)
        progress = stack.enter_context(show_progress())
        for index in range(count):
            (made,) = defence.generate(
                seed=seed,
                activate=activate,
                engine=jobs,
                progress=lambda stage, done, total, i=index: progress(  # type: ignore[misc]
                    stage, i * total + done, count * total
                ),
                on_reject=print_rejected,
            )
            print_made(made.number, made.manifest, "live" if activate else "kept, not live")


@app.command()
def activate(
    vault: VaultPath,
    number: Annotated[int, typer.Argument(min=1, help="Number of a kept generation.")],
    data: DataFolder = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Make a kept generation live, if it still passes its gates against what is exposed now."""
    with open_defence(vault, data, accept_code) as defence:
        defence.activate(number)
    print_line(f"Generation {number} is live.")


@app.command()
def attack(
    vault: VaultPath,
    threat: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run only this family; repeatable.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run a smoke test of two minutes, not evidence.")
    ] = False,
    eps: Annotated[float | None, typer.Option(help="Attack budget; the task's by default.")] = None,
    n: Annotated[int | None, typer.Option("--examples", help="Number of test examples.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every attack.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for results; else VAULT/redteam.")
    ] = None,
    data: DataFolder = None,
    workers: Workers = None,
    service: Annotated[
        str | None, typer.Option(metavar="URL", help="Attack a live service of the task instead.")
    ] = None,
    model: Annotated[str, typer.Option(help="The service's model name.")] = "g2d",
    engine: EngineName = "local",
    ray_address: RayAddress = "",
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Attack a vault with established attacks of every threat, beside controls; see `g2d report`.

    Goes on where an interrupted run stopped; rows whose inputs have not changed are reused.
    """
    bound = code_to_load(vault, vault_settings(vault), accept_code)
    configure_torch()
    from g2d import redteam

    live = redteam.ServiceAddress(service, model) if service else None
    with make_engine(engine, ray_address, workers or 0, vault) as jobs, show_progress() as progress:
        results = redteam.attack(
            vault, threats=threat or (), quick=quick, eps=eps, n=n, seed=seed, out=out,
            data="" if data is None else str(data.absolute()), service=live,
            engine=jobs, progress=progress, code=bound,
        )  # fmt: skip
    print_attacks(results)
    print_line(f"results      {redteam.results_path(vault, out)}")
    if any(row["status"] in ("failed", "died") for row in results["rows"]):
        raise G2DError("some rows could not be measured: the table above says why")


@app.command()
def report(
    vault: VaultPath,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where `g2d attack` wrote its results.")
    ] = None,
) -> None:
    """Turn the results of `g2d attack` into report.html and table.md."""
    from g2d.report import page as pages
    from g2d.report.results import read_results

    folder = out or vault / "redteam"
    results = read_results(folder / "results.json")
    pages.render_results(results, folder / "report.html")
    pages.write(folder / "table.md", pages.markdown(results))
    print_line(f"{folder / 'report.html'}")
    print_line(f"{folder / 'table.md'}")


app.command()(cli_check.check)
app.command()(cli_serve.serve)
app.command()(cli_trace.trace)
app.command()(cli_grow.grow)
app.command()(cli_refresh.refresh)
app.command()(cli_refresh.rollback)
vault_commands.add_to(app)
