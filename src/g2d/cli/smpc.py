"""The commands `g2d smpc identity|party|share|infer|status`: inference that nobody sees whole.

Thin, like `main`, and as lazy. What parties are is in `protect.multiparty`; SPU, which computes on
shares, is in an environment of its own and never imported here.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.console import print_line, say
from g2d.cli.shared import DataFolder, TaskPath, VaultPath, configure_torch
from g2d.errors import G2DError, SettingsError

if TYPE_CHECKING:
    from g2d.protect.multiparty.config import Config
    from g2d.protect.multiparty.dealing import Shared

app = typer.Typer(
    name="smpc",
    help="Multi-party inference: parties hold shares of weights, inputs and answers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_LOOK, _MOST = 1.0, 60.0  # seconds between looks for a new generation; between tries that fail

ConfigFile = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="parties.toml, the same for everybody.")
]
Certificate = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Your certificate; else the first that parties.toml names."),
]
Key = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Its key; else beside the certificate, as .key."),
]


@app.command()
def identity(
    path: Annotated[Path, typer.Argument(metavar="NAME", help="Writes NAME.pem and NAME.key.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="For how long it holds.")] = 365,
) -> None:
    """Make a key and a certificate for a party, a dealer or a client."""
    from g2d.protect.multiparty.identities import make_identity

    mark = make_identity(path, days)
    print_line(
        f"certificate  {path.with_suffix('.pem')} (give it to all parties, clients, dealers)"
    )
    print_line(f"key          {path.with_suffix('.key')} (mode 600; it stays on this machine)")
    print_line(f"fingerprint  {mark} (compare it by another way)")


@app.command()
def party(
    rank: Annotated[int, typer.Option(min=0, max=2, help="Which of the parties this is.")],
    config: ConfigFile,
    certificate: Certificate = None,
    key: Key = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For its shares; else the state folder.")
    ] = None,
) -> None:
    """Be one of the parties until a signal ends it; needs the environment of `make smpc`."""
    from g2d.protect.multiparty.config import Config
    from g2d.protect.multiparty.starting import command

    Config.read(config)  # what is wrong with it is said before anything starts
    flags = ["--rank", str(rank), "--config", str(config)]
    named = {"--certificate": certificate, "--key": key, "--state": state}
    flags += [text for flag, path in named.items() if path for text in (flag, str(path))]
    arguments, environment = command(flags)
    sys.stdout.flush()
    os.execve(arguments[0], arguments, environment)  # noqa: S606 (this process becomes the party)


@app.command()
def share(
    vault: VaultPath,
    config: ConfigFile,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on: share each generation that becomes live.")
    ] = False,
    signed: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public key: share only what it signed.")
    ] = None,
    certificate: Certificate = None,
    key: Key = None,
    data: DataFolder = None,
    task_path: TaskPath = None,
) -> None:
    """Share a vault's live generation among the parties, who answer by it from then on."""
    from g2d.protect.multiparty.config import Config

    found = Config.read(config)
    own = _own(found, "dealers", certificate, key)
    configure_torch()
    from g2d.protect.multiparty.errors import MultipartyError
    from g2d.rotation.triggers import Backoff
    from g2d.service.multiparty import weights
    from g2d.vault.signing import VerifyKey

    trusted = VerifyKey.read(signed) if signed else None
    folder = "" if data is None else str(data.absolute())
    loader = weights.SharedVault(vault, folder, trusted)
    number, said, failures, chance = 0, "", 0, random.SystemRandom()
    try:
        while True:
            wait = _LOOK
            try:
                number, failures = weights.follow(loader, found, own, number, _print_shared), 0
                said = ""
            except MultipartyError as error:
                if not follow:
                    raise
                failures += 1
                wait = Backoff(_LOOK, _MOST).seconds(failures, chance)
                if str(error) != said:
                    say(f"{error}; trying again, after {_MOST:.0f} seconds at most")
                said = str(error)
            if not follow:
                return
            time.sleep(wait)
    finally:
        loader.close()


def _print_shared(shared: Shared) -> None:
    print_line(f"Generation {shared.number} is live: {shared.size / 1e6:.2f} MB of shares a party.")


@app.command()
def infer(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="An array (.npy) as the task has it, or a picture."),
    ],
    config: ConfigFile,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the logits (n, classes), .npy.")
    ] = None,
    certificate: Certificate = None,
    key: Key = None,
) -> None:
    """Ask the parties: inputs go out and answers come back as shares."""
    from g2d.protect.multiparty.client import Client
    from g2d.protect.multiparty.config import Config

    found = Config.read(config)
    own = _own(found, "clients", certificate, key)
    import numpy as np

    from g2d.service.client.inputs import read_inputs

    logits, numbers = [], []
    with Client(found, own) as client:
        x = read_inputs(file, client.program.shape)
        for start in range(0, len(x), client.batch):
            answer = client.infer(x[start : start + client.batch])
            logits.append(answer.logits)
            numbers += [answer.number] * len(answer.logits)
    whole = np.concatenate(logits)
    for place, (row, number) in enumerate(zip(whole, numbers, strict=True)):
        print_line(
            f"{place}  class {int(row.argmax())}  logit {row.max():.4f}  generation {number}"
        )
    if out is not None:
        import io

        from g2d.core.files import write_bytes

        buffer = io.BytesIO()
        np.save(buffer, whole, allow_pickle=False)
        write_bytes(out, buffer.getvalue())


@app.command()
def status(config: ConfigFile, certificate: Certificate = None, key: Key = None) -> None:
    """Say of each party whether it is there, and what it answers by; exit 1 if one does not."""
    from g2d.protect.multiparty.config import Config
    from g2d.protect.multiparty.errors import MultipartyError
    from g2d.protect.multiparty.wire import Line

    found = Config.read(config)
    own, silent = _own(found, "clients", certificate, key), 0
    for rank in found.ranks:
        try:
            with Line(found, rank, own, 5.0) as line:
                told, _ = line.ask({"kind": "status"})
        except MultipartyError as error:
            print_line(f"party {rank}  {error}")
            silent += 1
            continue
        open_ = f"answers by generation {told['number']}" if told["open"] else str(told["why"])
        silent += not told["open"]
        print_line(f"party {rank}  {open_}; SPU {told['spu']}, {told['protocol']}")
    if silent:
        raise G2DError(f"{silent} of {len(found.ranks)} parties do not answer")


def _own(
    config: Config, role: str, certificate: Path | None, key: Path | None
) -> tuple[Path, Path]:
    """Files of one's own certificate and key."""
    files = config.files.get(role, ())
    if certificate is None:
        if not files:
            raise SettingsError(f"parties.toml names no {role}: give --certificate")
        certificate = files[0]
    return certificate, key or certificate.with_suffix(".key")
