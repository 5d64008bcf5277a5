"""The commands `g2d client infer` and `g2d client encrypted keys|infer`: ask a service.

Thin, like `main`, and as lazy. What clients do is in `service.client`; no answer is kept here.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.console import print_line, print_table
from g2d.cli.progress import show_progress
from g2d.cli.shared import Ca, ClientCert, TokenFile

if TYPE_CHECKING:
    from g2d.core.exchange import Credentials
    from g2d.protect.asking import Answer
    from g2d.service.client import Way

app = typer.Typer(
    name="client",
    help="Ask a service about inputs: as they are, or encrypted, so that it sees none.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
encrypted = typer.Typer(
    name="encrypted",
    help="The encrypted way: keys that stay here, and ciphertexts.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(encrypted)

Url = Annotated[str, typer.Argument(metavar="URL", help="Root of the service.")]
Inputs = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Arrays (.npy), or pictures (.png, ...).")
]
Model = Annotated[str, typer.Option(help="The service's model name.")]
Keys = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Your secret keys; else in the state folder, by the URL."),
]
Bounds = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        help="Values that an input may have, checked before it is encrypted; else 0 to 1 for"
        " pictures. For the encrypted way alone.",
    ),
]
Out = Annotated[Path | None, typer.Option(metavar="FILE.npy", help="Write all scores there, too.")]


def infer(
    url: Url,
    files: Inputs,
    way: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="plain: the service sees inputs and answers; encrypted: neither, a thousand times"
            " slower; multiparty: URL is parties.toml, and no party sees either.",
        ),
    ] = "plain",
    keys: Keys = None,
    bounds: Bounds = None,
    out: Out = None,
    model: Model = "g2d",
    token_file: TokenFile = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
) -> None:
    """Ask about inputs, and print each one's class."""
    from g2d.service.client import connect

    known = _known(token_file, ca, client_cert)
    _infer(connect(url, way, model=model, known=known, keys=keys, bounds=bounds), files, out)


def _fixed(command: Callable[..., None], **given: str) -> Callable[..., None]:
    """The same command, with all its options but those that are given."""

    @functools.wraps(command)
    def run(**rest: object) -> None:
        command(**rest, **given)

    signature = inspect.signature(command, eval_str=True)
    left = [one for name, one in signature.parameters.items() if name not in given]
    run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in left}
    return run


app.command()(infer)
encrypted.command(
    "infer",
    help="Ask about encrypted inputs, and print each one's class, as `--way encrypted` does.",
)(_fixed(infer, way="encrypted"))


@encrypted.command("keys")
def make_keys(
    url: Url,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where your secret keys go; else the state folder."),
    ] = None,
    model: Model = "g2d",
    token_file: TokenFile = None,
    ca: Ca = None,
    client_cert: ClientCert = None,
) -> None:
    """Make keys for a service, or take those that are there, and upload the public ones."""
    from g2d.service.client.encrypted import EncryptedClient

    client = EncryptedClient(url, model, _known(token_file, ca, client_cert), out)
    fresh = client.make_keys()
    made = "mode 600; it decrypts your answers and never leaves this machine"
    print_line(f"secret keys  {client.file} ({made if fresh else 'they were there already'})")
    with show_progress() as progress:
        size = client.upload(progress)
    print_line(f"uploaded     {size / 1e6:.1f} MB to {url}, which it needs to compute")
    again = f" --keys {out}" if out is not None else ""
    print_line(f"Next: g2d client encrypted infer {url} FILE.npy{again}")


def _known(token_file: Path | None, ca: Path | None, client_cert: Path | None) -> Credentials:
    from g2d.core.exchange import Credentials

    return Credentials.read(token_file, ca, client_cert)


def _infer(client: Way, files: list[Path], out: Path | None) -> None:
    import numpy as np

    from g2d.service.client.inputs import read_inputs

    described = client.describe()
    read = [read_inputs(file, described.shape) for file in files]
    with show_progress() as progress:
        answer = client.infer(np.concatenate(read), progress)
    names = described.names
    places = [
        f"{file} {i}" if len(x) > 1 else str(file)
        for file, x in zip(files, read, strict=True)
        for i in range(len(x))
    ]
    scores = (
        [""] * len(places) if answer.labels_only else [f"{s:.4g}" for s in answer.values.max(1)]
    )
    table = [
        {"input": place, "class": names[k] if k < len(names) else str(k), "score": score}
        for place, k, score in zip(places, answer.labels.tolist(), scores, strict=True)
    ]
    if answer.mixed and answer.each:
        for row, name in zip(table, answer.each, strict=True):
            row["generation"] = "?" if name is None else str(name)
    print_table(table)
    if told := _by_whom(answer):
        print_line(told)
    if out is not None:
        _write(out, answer.values)


def _by_whom(answer: Answer) -> str:
    """Which generations answered, as far as that is told."""
    if answer.mixed is None:
        return (
            "answered by one of the live generations each: the service does not say which"
            " generation, and several may have"
        )
    named = [*answer.each] or [answer.number, *answer.others]
    counts = Counter(str(name) for name in named if name is not None)
    if not answer.mixed:
        return f"answered by generation {', '.join(counts)}" if counts else ""
    parts = (f"{name} ({n} input{'s' * (n > 1)})" for name, n in counts.items())
    return f"answered by several generations: {', '.join(parts)}"


def _write(out: Path, values: object) -> None:
    import io

    import numpy as np

    from g2d.core.files import write_bytes

    target = io.BytesIO()
    np.save(target, np.asarray(values))
    write_bytes(out, target.getvalue())
    print_line(f"scores       {out}")
