"""Commands that look at a vault and change nothing of it: show, verify, accept, export, settings.

Thin, like `main`, which attaches them, and as lazy: none of them imports torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from g2d.cli.console import (
    commented,
    print_basins,
    print_controls,
    print_generations,
    print_line,
    print_population,
    when,
)
from g2d.cli.export import export
from g2d.cli.shared import VaultPath, vault_settings
from g2d.errors import G2DError
from g2d.report.results import UNATTACKED
from g2d.settings import Settings

_RESTORE = "restore what is damaged from a backup"
_ADVICE = {
    "settings": "correct task.toml",
    "signature": "check the key, and serve no generation that it did not sign",
    "unknown": "move what is unknown out of the vault",
    "sealing": "restore what was changed from a backup, or go on with what was begun",
    "custodian": "verify again where its custodian is",
}
"""What to do about a kind of problem; about any other: `_RESTORE`."""


_ATTACKS = {
    "none": "nothing",
    "own": "an attack of the task's own",
    "tokens": "substitution of tokens",
}
"""How a task is attacked whose base says so; others are in the ball of eps."""


def add_to(app: typer.Typer) -> None:
    """Attach the commands, in the order in which help lists them."""
    for command in (show, verify, accept, export, settings):
        app.command()(command)


def show(
    vault: VaultPath,
    last: Annotated[int, typer.Option(min=1, help="How many generations to list.")] = 20,
) -> None:
    """Show a vault at a glance; it may be read-only or in use."""
    from g2d.vault.serving import about_canaries
    from g2d.vault.vault import Vault

    with Vault.open(vault) as opened:
        settings = Settings.from_vault(opened.settings_text, str(opened.path / "task.toml"))
        task = settings.task
        base = opened.entry("base")
        attack = str(base.info.get("attack", "")) if base else ""
        budget = f"eps {task.eps:g}" if task.eps else "eps the task's own"
        budget = f"attacked by {_ATTACKS.get(attack, attack)}" if attack else budget
        if attack == "none":
            print_line(UNATTACKED)
        print_line(f"vault        {opened.path}")
        if told := about_canaries(opened):
            print_line(f"canaries     it {told}: it is never served")
        print_line(f"task         {task.name}, {budget}" + (f", {task.data}" if task.data else ""))
        if (p := settings.privacy).enabled:
            budget = f"epsilon {p.epsilon:g} at delta {p.delta:g} for each {p.unit}"
            print_line(f"private      within {budget}; what is spent: g2d privacy {vault}")
        elif settings.federated.private:
            print_line(f"private      by its clients' own ledgers; see g2d privacy {vault}")
        print_population(opened, settings)
        if (record := opened.sealing.record) is not None:
            kinds = ", ".join(one.kind for one in record.held)
            print_line(f"sealing      {record.state}, key {record.key}, opened by: {kinds}")
        print_basins(opened)
        generator = opened.entry("generator")
        print_line(
            f"generator    {f'fitted {when(generator.created)}' if generator else 'none yet'}"
        )
        if opened.source:
            print_line(f"source       renewal {opened.source}, by `g2d refresh`")
        print_generations(opened, last)
        print_controls(opened.path)


def verify(
    vault: VaultPath,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public key: every generation has to be signed by it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the problems as JSON.")] = False,
) -> None:
    """Read everything in a vault and say what is wrong, a line each; it may be in use."""
    from g2d.vault import verify as verifying

    found = verifying.verify(vault, key)
    if as_json:
        typer.echo(json.dumps([asdict(problem) for problem in found], indent=1))
    else:
        for problem in found:
            print_line(str(problem))
    if found:
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        advice = dict.fromkeys(_ADVICE.get(problem.kind, _RESTORE) for problem in found)
        raise G2DError(f"{vault} has {count}: {'; '.join(advice)}")
    if not as_json:
        print_line(f"{vault} is sound.")


def accept(vault: VaultPath) -> None:
    """Take a vault as it is now, although it is older than it was, or new to this machine.

    The mark outside the vault is set to what its ledger says; the next service tells it as an
    event.
    """
    from g2d.vault.mark import FileMark
    from g2d.vault.rollback import accept as accepting
    from g2d.vault.vault import Vault

    with Vault.open(vault) as opened:
        marks = FileMark(opened.path, opened.identity)
        print_line(accepting(opened, marks))
        print_line(f"mark         {marks.file}")


def settings(
    vault: Annotated[
        Path | None, typer.Argument(metavar="[VAULT]", help="Folder of the vault.")
    ] = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Print the defaults, of no vault.")
    ] = False,
) -> None:
    """Print all settings as TOML, each with its meaning."""
    if (vault is None) == (not defaults):
        raise typer.BadParameter("name a VAULT, or give --defaults")
    if vault is None:
        typer.echo("# Keep only the lines that you change: a task has its own values for others.")
        typer.echo(commented(Settings()))
    else:
        typer.echo(commented(vault_settings(vault)))
