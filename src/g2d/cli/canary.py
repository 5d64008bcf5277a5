"""The commands `g2d canary check|show`: whether a service still answers as a generation does.

Thin, like `main`, and as lazy. How canaries are judged is in `protect.canaries.kept`, how a
service is asked in `service.canaries`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.console import print_line
from g2d.cli.shared import Ca, ClientCert, TokenFile, VaultPath
from g2d.errors import G2DError, SettingsError

if TYPE_CHECKING:
    from g2d.protect.canaries.kept import Verdict

app = typer.Typer(
    name="canary",
    help="Inputs kept with each generation that show changed weights to whoever can only ask.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Number = Annotated[
    str, typer.Option("--generation", metavar="N", help="Number of a generation, or live.")
]


@app.command()
def check(
    url: Annotated[str, typer.Argument(metavar="URL", help="Root of the service.")],
    vault: Annotated[Path, typer.Option(metavar="FOLDER", help="The vault that it serves.")],
    generation: Number = "live",
    labels: Annotated[
        bool, typer.Option("--labels", help="Compare classes alone, whatever the service answers.")
    ] = False,
    model: Annotated[str, typer.Option(help="The service's model name.")] = "g2d",
    token_file: TokenFile = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
) -> None:
    """Ask a service its generation's canaries; exit 1 if any is answered otherwise."""
    number = _number(generation)
    from g2d.core.exchange import Credentials
    from g2d.protect.asking import Client
    from g2d.service.canaries import ask_service
    from g2d.vault.vault import Vault

    client = Client(url, model, Credentials.read(token_file, ca, client_cert))
    with Vault.open(vault) as opened:
        found = ask_service(opened, client, number, labels)
    told = "" if found.told else ", as far as is known: the service does not say which it serves"
    print_line(f"generation   {found.number}{told}")
    print_line(f"compared     {_compared(found.verdict)} of {found.canaries} canaries")
    for one in found.verdict.changed:
        print_line(str(one))
    if found.verdict.changed:
        raise G2DError(
            f"{url} answers {len(found.verdict.changed)} of {found.canaries} canaries otherwise"
            f" than generation {found.number} does: what answers was changed, or is another"
        )
    print_line("All are answered as the sound generation does.")


@app.command()
def show(vault: VaultPath, generation: Number = "live") -> None:
    """Say what canaries a generation keeps; never the inputs themselves."""
    number = _number(generation)
    from g2d.service.canaries import kept_canaries
    from g2d.vault.vault import Vault

    with Vault.open(vault) as opened:
        number = number or opened.live()
        if number is None:
            raise G2DError(f"{opened.path} has no generation yet; run `g2d fit` first")
        found = kept_canaries(opened, number)
    leads = found.margins
    print_line(f"generation   {number}: {len(found)} canaries")
    print_line(f"inputs       {found.x.shape[1:]} {found.x.dtype}")
    print_line(f"classes      {', '.join(map(str, sorted(set(found.labels.tolist()))))}")
    print_line(f"leads        {leads.min():.3g} to {leads.max():.3g} of the highest logit")
    print_line(f"tolerance    {found.tolerance:.3g}: a logit off by more was changed")


def _compared(verdict: Verdict) -> str:
    if verdict.how == "labels":
        return "labels only"
    rounded = "" if verdict.decimals is None else f", rounded to {verdict.decimals} decimals,"
    return f"{verdict.how}{rounded}"


def _number(text: str) -> int | None:
    if text == "live":
        return None
    if not (text.isdecimal() and 0 < int(text[:18]) == int(text)):
        raise SettingsError(f"--generation is {text!r}, expected a number from 1 on, or live")
    return int(text)
