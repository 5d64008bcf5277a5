"""The commands `g2d refresh` and `g2d rollback`: thin, like `main`, and as lazy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.console import print_line, print_made, print_rejected
from g2d.cli.progress import show_progress
from g2d.cli.shared import (
    AcceptCode,
    EngineName,
    RayAddress,
    TaskPath,
    VaultPath,
    Workers,
    code_to_load,
    configure_torch,
    make_engine,
    task_path_again,
    vault_settings,
)
from g2d.errors import VaultError
from g2d.settings import Settings

if TYPE_CHECKING:
    from g2d.defence.defence import Defence
    from g2d.vault.vault import Vault


def refresh(
    vault: VaultPath,
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="NEW", help="New labelled data: a folder, .npz, .csv or .jsonl."
        ),
    ],
    task_data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the task's own data.")
    ] = None,
    accept_data: Annotated[
        bool,
        typer.Option(
            "--accept-data", help="Take data that checks refuse; manifests and ledger say so."
        ),
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Drop an unfinished refresh with other data.")
    ] = False,
    workers: Workers = None,
    engine: EngineName = "local",
    ray_address: RayAddress = "",
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Renew population and generator on new labelled data; the former ones stay, see `rollback`.

    Looks for poison on the way, goes on where an interrupted run stopped, and may run while the
    vault is served: then the service takes the result up before it makes its next generation.
    """
    bound = code_to_load(vault, vault_settings(vault), accept_code)
    configure_torch()
    from g2d.defence.defence import Defence
    from g2d.defence.refresh import Refresh
    from g2d.defence.refresh import refresh as make
    from g2d.tasks.labelled import read_labelled

    where = "" if task_data is None else str(task_data.absolute())
    with Defence.open(vault, write=False, data=where, code=bound) as defence:
        given = read_labelled(data, defence.task, print_line)
        count = defence.settings.population.workers if workers is None else workers
        with make_engine(engine, ray_address, count, vault) as jobs, show_progress() as progress:
            told = make(defence, given, Refresh(jobs, progress, print_line, accept_data, anew))
    if told.known:
        print_line(f"{vault} knows these data already.")
    else:
        print_line(f"{told.forks} networks were forked in {told.steps} steps, {told.cpu:.0f} CPU s")
    try:
        defence = Defence.open(vault, data=where, code=bound)
    except VaultError as error:
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        print_line(f"A service is writing {vault}: it takes the new population up before it makes")
        print_line("its next generation. That goes live by its schedule, or by /admin/rotate.")
        return
    with defence:
        _go_live(defence)
    print_line(f"Back to the former population: g2d rollback {vault}{task_path_again(task_path)}")


def _go_live(defence: Defence) -> None:
    """Take the challenger up, and make a generation of it live, unless one is."""
    from g2d.defence.refresh import follow, take_up
    from g2d.vault.sources import source_of

    taken = take_up(defence.vault)
    if taken is not None:
        print_line(taken.text)
    defence = follow(defence)
    live = defence.vault.live()
    if live is None or source_of(defence.generation(live).manifest) == defence.vault.source:
        return
    with show_progress() as progress:
        (made,) = defence.generate(progress=progress, on_reject=print_rejected)
    print_made(made.number, made.manifest, "live")


def rollback(vault: VaultPath) -> None:
    """Go back to the population and the generator that were there before the last refresh.

    A generation of them goes live at once, under a new number; make a fresh one soon. While the
    vault is served, its service goes back before it makes its next generation.
    """
    from g2d.vault.vault import Vault

    settings = vault_settings(vault)
    try:
        opened = Vault.open(vault, write=True)
    except VaultError as error:
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        _ask(vault)
        return
    with opened:
        _go_back(opened, settings)


def _go_back(opened: Vault, settings: Settings) -> None:
    from g2d.vault.sources import put_back

    back = put_back(opened, settings)
    print_line(f"Generations come from {_name(back.source)} again.")
    if back.refused:
        print_line(f"What is live stays: {back.refused}")
    elif back.number is None:
        print_line("None of its generations has its weights any more, so what is live stays.")
    else:
        print_line(f"Generation {back.number} is live: the weights of generation {back.of}.")
    print_line(f"Next: g2d generate {opened.path}")


def _ask(vault: Path) -> None:
    """Leave word for the service, which is the one that writes."""
    from g2d.vault.sources import order_back
    from g2d.vault.vault import Vault

    with Vault.open(vault) as opened:
        back = order_back(opened)
    print_line(
        f"A service is writing {vault}: it goes back to {_name(back.source)} before it makes"
    )
    print_line("its next generation; POST /admin/rotate has it do so now.")


def _name(source: int) -> str:
    return f"renewal {source}" if source else "the first population"
