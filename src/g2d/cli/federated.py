"""The command `g2d federated simulate`: clients, rounds and malicious clients in one process; those
for clients in processes of their own are in `federated_processes`.

Thin, like `main`, and as lazy. What a round is, is in `training.federated`; what becomes of a
population that clients trained, in `defence.federating`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2d.cli import federated_processes
from g2d.cli.console import print_line, print_population, say
from g2d.cli.flags import Given, Set, merged, read_changes, with_flags
from g2d.cli.progress import show_progress
from g2d.cli.shared import AcceptCode, TaskPath, asked_settings, prepare, task_path_again
from g2d.errors import SettingsError
from g2d.settings import Settings

if TYPE_CHECKING:
    from g2d.training.federated.checks import Refusals
    from g2d.training.federated.simulate import Hostile

app = typer.Typer(
    name="federated",
    help="Members from many hands: clients train together and keep their records.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
@with_flags(
    Settings,
    into="given",
    names={
        "data": "task__data",
        "clients": "federated__clients",
        "f": "federated__f",
        "rule": "federated__rule",
        "rounds": "federated__rounds",
        "alpha": "federated__alpha",
        "dropout": "federated__dropout",
        "members": "population__members",
        "seed": "population__seed",
    },
    defaults=False,
)
def simulate(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Built-in name or module:factory.")],
    given: Given,
    vault: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Make a whole population there; else a base alone."),
    ] = None,
    attack: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What malicious clients do: sign-flip, alie, ipm, min-max, label-flip, backdoor.",
        ),
    ] = "",
    malicious: Annotated[
        int | None, typer.Option(min=0, help="How many clients attack; f by default.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; flags override them.")
    ] = None,
    changes: Set = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Split a task's training data over clients, attack some, and train by the same messages.

    With `--vault` the population is kept, and `g2d fit` goes on from it; the same command resumes
    after Ctrl-C. Without, a base is trained and said how it stands beside the server's data alone.
    """
    flags = {**merged(given, read_changes(changes or ())), "task__name": task}
    if vault is None:
        _base_alone(asked_settings(settings, flags), attack, malicious)
        return
    defence, _ = prepare(vault, settings, flags, accept_code)
    from g2d.defence.federating import federate

    with defence:
        hostile = _hostile(defence.settings, attack, malicious)
        with show_progress() as progress:
            federate(defence.task, defence.vault, defence.settings, hostile, progress, say)
        print_population(defence.vault, defence.settings)
    print_line(f"Next: g2d fit {vault}{task_path_again(task_path)}")


def _base_alone(settings: Settings, attack: str, malicious: int | None) -> None:
    """Train a base, keep nothing, and print what it is worth."""
    from g2d.defence.federating import check_settings, simulation
    from g2d.tasks.source import by_name, resolve
    from g2d.training.federated.bases import train_base

    task = resolve(by_name(settings.task))
    check_settings(task, settings)
    hostile = _hostile(settings, attack, malicious)
    sim = simulation(task, settings, hostile, say)
    with show_progress() as progress:
        found = train_base(sim, progress)
    n = len(task.splits.gate)
    print_line(f"base         accuracy {_rate(found.accuracy, n)}")
    if found.alone is not None:
        own = f"accuracy {_rate(found.alone, n)}: trained on {len(sim.root)} records of its own"
        print_line(f"server alone {own}")
    if (spent := sim.spent) is not None:
        delta = settings.privacy.delta
        print_line(f"private      epsilon {spent:.3f} at delta {delta:g}, of whom it cost most")
    skipped = [closed for closed in found.server.closed if closed.skipped]
    print_line(f"rounds       {len(found.server.closed)}, of which {len(skipped)} were skipped")
    print_line(f"refused      {_refused(found.server.refusals)}")
    if found.alone is not None and found.accuracy < found.alone:
        print_line(
            "This base is worse than the server's own records alone: with --vault it would be"
            " refused. Give it more rounds, another rule, or clients who can be trusted"
        )
    print_line("Nothing was kept; --vault FOLDER makes a whole population.")


def _hostile(settings: Settings, attack: str, malicious: int | None) -> Hostile | None:
    """Which clients attack, and how.

    Raises:
        SettingsError: there is no such attack, or clients are to attack and it is not said how.
    """
    if not attack:
        if malicious:
            raise SettingsError(
                f"--malicious {malicious} clients attack, and it is not said how: add --attack NAME"
            )
        return None
    from g2d.attacks.byzantine import find_attack
    from g2d.training.federated.simulate import Hostile

    count = settings.federated.f if malicious is None else malicious
    if not count:
        none = "f is 0" if malicious is None else "--malicious is 0"
        raise SettingsError(
            f"--attack {attack} needs clients that attack, and {none}: give --f, or --malicious"
        )
    return Hostile(find_attack(attack), count)


def _refused(refusals: Refusals) -> str:
    found: dict[str, Any] = dict(sorted(refusals.counts.items()))
    return ", ".join(f"{count} ({reason})" for reason, count in found.items()) or "none"


def _rate(value: float, n: int) -> str:
    from g2d.cli.console import rate

    return f"{rate(value, n)} of {n} gate examples [95 % interval]"


for _command in (
    federated_processes.provision,
    federated_processes.server,
    federated_processes.client,
):
    app.command()(_command)
