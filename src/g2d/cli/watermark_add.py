"""The command `g2d watermark add`, which `watermark` attaches: thin, like `main`, and as lazy."""

from __future__ import annotations

from typing import Annotated

import typer

from g2d.cli.console import print_line
from g2d.cli.progress import show_progress
from g2d.cli.shared import (
    AcceptCode,
    DataFolder,
    EngineName,
    RayAddress,
    TaskPath,
    VaultPath,
    Workers,
    make_engine,
    open_defence,
    task_path_again,
)


def add(
    vault: VaultPath,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=10**7, help="Optimiser steps of each member's fork; else 1,000."),
    ] = None,
    data: DataFolder = None,
    workers: Workers = None,
    engine: EngineName = "local",
    ray_address: RayAddress = "",
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Mark a vault that was made without its watermark: short forks of its members learn it.

    Goes on where an interrupted run stopped; the vault stays as it was until all of it is done.
    """
    with open_defence(vault, data, accept_code) as defence:
        from g2d.defence.watermarking import STEPS, mark_vault

        count = defence.settings.population.workers if workers is None else workers
        with make_engine(engine, ray_address, count, vault) as jobs, show_progress() as progress:
            made = mark_vault(
                defence.task, defence.source, defence.vault, defence.settings, jobs, progress,
                steps or STEPS,
            )  # fmt: skip
        live = defence.vault.live()
    if not made.members:
        print_line(f"The population of {vault} carries the watermark already.")
        return
    print_line(
        f"{made.members} members were marked in {made.steps} steps each, {made.cpu:.0f} CPU s: "
        f"every set of triggers is hit by {made.least:.1%} or more."
    )
    print_line(
        f"accuracy on the gate split: {made.before:.2%} before, {made.after:.2%} after (means); "
        f"one member lost {max(0.0, made.worst):.2%}, none more."
    )
    was = f"Generation {live} and those before it carry none. " if live else ""
    print_line(
        f"{was}Next: g2d {'generate' if live else 'fit'} {vault}{task_path_again(task_path)}"
    )
