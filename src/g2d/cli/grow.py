"""The command `g2d grow`: thin, like `main`, and as lazy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.console import print_basins, print_line
from g2d.cli.progress import show_progress
from g2d.cli.shared import (
    AcceptCode,
    DataFolder,
    TaskPath,
    VaultPath,
    code_to_load,
    configure_torch,
    task_path_again,
    vault_settings,
)
from g2d.errors import VaultError

if TYPE_CHECKING:
    from g2d.core.sources import Digests
    from g2d.defence.growing import Grow, Grown


def grow(
    vault: VaultPath,
    basins: Annotated[int, typer.Option(min=1, max=1000, help="How many, one after another.")] = 1,
    members: Annotated[
        int, typer.Option(min=0, max=1000, help="Members of each; 0: as [growth] members says.")
    ] = 0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="To reproduce one; else a secret one is drawn."),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Drop what an unfinished run has left.")
    ] = False,
    data: DataFolder = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Grow one more basin, which nobody has seen: the next generation begins there.

    Trained in one process against all that was exposed. Goes on where an interrupted run stopped,
    and may run while the vault is served: then the service takes the basin up.
    """
    bound = code_to_load(vault, vault_settings(vault), accept_code)
    configure_torch()
    from g2d.defence.growing import Grow

    where = "" if data is None else str(data.absolute())
    for index in range(basins):
        with show_progress() as progress:
            how = Grow(progress, print_line, members, seed, anew and index == 0)
            made = _grow(vault, where, bound, how)
        print_line(f"Basin {made.basin}: {made.members} members, {made.cpu:.0f} CPU s of training.")
        if not _take_up(vault):
            print_line(f"A service is writing {vault}, or a refresh waits there: the basin joins")
            print_line("before the service makes its next generation.")
            return
    print_line(f"Next: g2d generate {vault}{task_path_again(task_path)}")


def _grow(vault: Path, data: str, bound: Digests, how: Grow) -> Grown:
    """Grow one basin; whoever writes the vault goes on."""
    from g2d.defence.defence import Defence
    from g2d.defence.growing import grow as make

    with Defence.open(vault, write=False, data=data, code=bound) as defence:
        made = make(defence, how)
        if not defence.settings.guidance.resting:
            how.say(
                "Note: [guidance] resting = false has candidates begin in any basin; with true they"
                " begin in those that nobody has seen."
            )
        return made


def _take_up(vault: Path) -> bool:
    """Have the basin join the vault; False: whoever writes it has to."""
    from g2d.defence.growing import take_up_basin
    from g2d.vault.vault import Vault

    try:
        opened = Vault.open(vault, write=True)
    except VaultError as error:
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        return False
    with opened:
        taken = take_up_basin(opened)
        if taken is not None:
            print_line(taken.text[0].upper() + taken.text[1:] + ".")
            print_basins(opened)
    return taken is not None
