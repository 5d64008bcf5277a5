"""The commands `g2d federated provision|server|client`: clients in processes of their own.

Thin, like `main`, and as lazy. What they say to each other is in `training.federated.processes`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.console import print_line, print_population, say
from g2d.cli.flags import Given, Set, merged, read_changes, with_flags
from g2d.cli.progress import show_progress
from g2d.cli.shared import (
    AcceptCode,
    DataFolder,
    TaskPath,
    asked_settings,
    configure_torch,
    prepare,
    task_path_again,
)
from g2d.errors import G2DError, SettingsError
from g2d.settings import Settings

if TYPE_CHECKING:
    from types import FrameType

    from g2d.training.federated.client import Client
    from g2d.training.federated.processes.kits import Kit

_FEW = 32  # records: of one alone gradient inversion found an image again
_LINGER = 60.0  # seconds in which clients hear that it is over

KitFolder = Annotated[
    Path, typer.Argument(metavar="KIT", help="Folder that `g2d federated provision` made.")
]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Built-in name or module:factory.")]


@with_flags(
    Settings,
    into="given",
    names={
        "data": "task__data",
        "f": "federated__f",
        "rule": "federated__rule",
        "rounds": "federated__rounds",
        "members": "population__members",
        "seed": "population__seed",
    },
    defaults=False,
)
def provision(
    folder: Annotated[Path, typer.Argument(metavar="KITS", help="New folder for all kits.")],
    task: TaskName,
    given: Given,
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where clients will reach the server.")
    ],
    client: Annotated[
        list[str], typer.Option(metavar="NAME", help="A client's name; once for each.")
    ],
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; flags override them.")
    ] = None,
    changes: Set = None,
    task_path: TaskPath = None,
) -> None:
    """Make a kit for the server and for each client: certificates, and what all train by."""
    from g2d.defence.federating import check_settings
    from g2d.tasks.source import by_name, resolve
    from g2d.training.federated.processes.kits import provision as make

    flags = {**merged(given, read_changes(changes or ())), "task__name": task}
    flags["federated__clients"] = len(client)
    asked = asked_settings(settings, flags)
    check_settings(resolve(by_name(asked.task)), asked, own=False)  # before kits are handed out
    made = make(folder, server, client, asked)
    for path in made:
        print_line(f"{path}: give it to {path.name} alone, by a way that is safe")
    again = task_path_again(task_path)
    print_line(f"Next: g2d federated server {made[0]} {task} --vault VAULT{again}")


def server(
    kit: KitFolder,
    task: TaskName,
    vault: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the population is made, or goes on.")
    ],
    data: DataFolder = None,
    bind: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Where to listen; else at the kit's port."),
    ] = "",
    patience: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="How long a round waits for the missing."),
    ] = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Train a population with clients that connect; the same command goes on after a kill."""
    own = _read(kit, server=True)
    _check_address("--bind", bind)
    folder = None if data is None else str(data)
    flags = {"task__name": task, "task__data": folder, "federated__patience": patience}
    defence, _ = prepare(vault, own.settings_file, flags, accept_code)
    from g2d.defence.federating import begin_at, check_settings, federate, folder_of
    from g2d.training.federated.messages import most_bytes
    from g2d.training.federated.networks import Networks
    from g2d.training.federated.processes.away import AWAY
    from g2d.training.federated.processes.cells import ServerCell
    from g2d.training.federated.processes.desk import Desk
    from g2d.training.federated.processes.remote import Remote
    from g2d.training.federated.processes.words import settings_digest

    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: what is complete is kept
    with defence:
        s, form = defence.settings, Networks.of(defence.task).form
        check_settings(defence.task, s, own=False)
        wait = s.federated.patience
        away = folder_of(defence.vault) / AWAY
        desk = Desk(own.clients, settings_digest(s, form), wait, say, away)
        where = bind or f"0.0.0.0:{own.address.rpartition(':')[2]}"
        cell = ServerCell(own, where, most_bytes(form), desk.handle)
        desk.tick = cell.tidy
        remote = Remote(
            defence.task, s, begin_at(defence.task, s), folder_of(defence.vault), say,
            names=own.clients, desk=desk,
        )  # fmt: skip
        cell.start()
        say(f"listening at {where} for {len(own.clients)} clients")
        try:
            with show_progress() as progress:
                federate(defence.task, defence.vault, s, None, progress, say, remote)
            desk.end(_LINGER)
        finally:
            cell.stop()
        print_population(defence.vault, s)
    print_line(f"Next: g2d fit {vault}{task_path_again(task_path)}")


def client(
    kit: KitFolder,
    task: TaskName,
    data: DataFolder = None,
    address: Annotated[
        str, typer.Option("--server", metavar="HOST:PORT", help="The server's; else the kit's.")
    ] = "",
    state: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For its last answer; else in the kit."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For what its records' privacy has cost, over all runs; else in the kit.",
        ),
    ] = None,
    task_path: TaskPath = None,
    accept_code: Annotated[
        bool, typer.Option("--accept-code", help="Run code that the kit's settings name.")
    ] = False,
) -> None:
    """Train on this machine's records for as long as the server asks; records stay here."""
    own = _read(kit, server=False)
    _check_address("--server", address)
    where = address or own.address
    settings = own.settings(task__name=task, task__data=None if data is None else str(data))
    if not accept_code:
        _check_code(settings, own.settings_file)
    configure_torch()
    from g2d.core.files import make_folder
    from g2d.training.federated.messages import most_bytes
    from g2d.training.federated.processes.cells import ClientCell
    from g2d.training.federated.processes.words import settings_digest
    from g2d.training.federated.processes.work import Worker

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    keeps = make_folder(state or kit / "state", 0o700)
    with _alone(keeps, own.name):
        made = _make_client(own, settings, keeps, ledger or kit / "ledger")
        form = made.networks.form
        cell = ClientCell(own, where, most_bytes(form))
        _say_what_is_guaranteed(made)
        worker = Worker(made, settings_digest(settings, form), cell, stop, say)
        cell.start()
        say(f"{own.name} has {len(made.records)} records and asks {where}")
        try:
            over = worker.run()
        finally:
            cell.stop()
    if made.ledger is not None:
        say(f"spent: epsilon {made.ledger.epsilon():.3f} at delta {settings.privacy.delta:g}")
    print_line("The server has ended: the population is complete." if over else "Stopped.")


def _make_client(kit: Kit, settings: Settings, state: Path, ledger: Path) -> Client:
    """The client of a kit, with the records of its task and what it knows from before."""
    from g2d.defence.federating import begin_at, check_settings
    from g2d.tasks.source import by_name, resolve
    from g2d.training.federated.client import Client
    from g2d.training.federated.ledgers import ledger_at
    from g2d.training.federated.networks import Networks

    task = resolve(by_name(settings.task))
    check_settings(task, settings)
    return Client(
        kit.name, task, task.splits.train, settings, Networks.of(task), begin_at(task, settings),
        state / f"{kit.name}.safetensors", ledger=ledger_at(ledger, settings),
    )  # fmt: skip


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold what a client keeps, so that no second process takes part by the same kit.

    Of two connections of one name only one is heard, and a round waits for the other's answer.

    Raises:
        G2DError: another process holds it, or nobody can.
    """
    from g2d.core.platforms import held

    path = folder / f"{name}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(held(path))
        except BlockingIOError as error:
            raise G2DError(
                f"another process takes part as {name} and holds {path}: end it first, for two of"
                " one kit keep each other from the server"
            ) from error
        except OSError as error:
            raise G2DError(
                f"{path} cannot be held ({error.strerror or error}): let this user write to the"
                " folder, or name another with --state"
            ) from error
        yield


def _say_what_is_guaranteed(client: Client) -> None:
    """Say what answers may tell of records, before the first of them leaves."""
    from g2d.training.federated.ledgers import told
    from g2d.training.federated.private import rounds_left

    s = client.settings
    if client.ledger is not None:
        for line in told(client.ledger, rounds_left(s, client.answered)):
            say(line)
        return
    say(
        "no privacy guarantee: answers may tell of single records; [federated] private = true in"
        " settings.toml of this kit trains by [privacy]"
    )
    seen = min(len(client.records), s.federated.local_steps * s.population.batch)
    if 0 < seen < _FEW:
        say(
            f"each answer tells of {seen} records, so few that it may show them: see"
            " docs/federated.md before you go on"
        )


def _check_code(settings: Settings, file: Path) -> None:
    """Refuse code that whoever made the kit has chosen, until it was looked at.

    Raises:
        SettingsError: settings name some.
    """
    named = [name for name in (*settings.harden.recipe, settings.federated.rule) if ":" in name]
    if named:
        raise SettingsError(
            f"{file} names code that would run here, {', '.join(named)}: look at it, and say that"
            " you accept it by --accept-code"
        )


def _check_address(option: str, address: str) -> None:
    """Refuse an address that is none, by the option that it was given with; "": it was not.

    Raises:
        SettingsError: it is no HOST:PORT.
    """
    from g2d.training.federated.processes.kits import split_address

    try:
        if address:
            split_address(address)
    except SettingsError:
        raise SettingsError(
            f"{option} {address!r} is no HOST:PORT, such as localhost:8002"
        ) from None


def _read(path: Path, server: bool) -> Kit:
    """Read a kit, and see that it is of this side."""
    from g2d.training.federated.processes.kits import read_kit

    kit = read_kit(path)
    if kit.is_server != server:
        other = "server" if kit.is_server else "client"
        raise SettingsError(f"{path} is the kit of {kit.name}: run `g2d federated {other}` with it")
    return kit


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
