"""The command `g2d attest confidential`: what a confidential machine's processor signed, verified.

Thin and lazy, as `attest`, whose group it joins.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.attest import app
from g2d.cli.console import print_line
from g2d.errors import SealingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from g2d.protect.attestation.confidential.policy import Shown

__all__ = ["app"]

_LARGEST = 1 << 20  # bytes

Evidence = Annotated[
    Path, typer.Argument(metavar="FILE", help="The report or quote, raw, from the machine.")
]
Measurements = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=HEX",
        help="What it is to have started; repeatable, several of one name are alternatives."
        " sev-snp: measurement; tdx: mrtd, rtmr0 to rtmr3.",
    ),
]
Endorsements = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="sev-snp: VCEK and ASK; tdx: collateral (JSON). Repeatable."),
]
Roots = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="sev-snp: AMD's root (ARK), from AMD itself."),
]
Nonce = Annotated[str, typer.Option(metavar="HEX", help="The 32 bytes that you drew for it.")]
PublicKey = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="A public key that it bound with the nonce."),
]
Data = Annotated[
    str, typer.Option(metavar="HEX", help="In place of a nonce: all 64 bytes of report data.")
]
Least = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=NUMBER", help="Firmware's security version, at least."),
]
Statuses = Annotated[
    list[str] | None,
    typer.Option(metavar="STATUS", help="tdx: a further status of Intel's that will do."),
]
Processors = Annotated[
    list[str] | None,
    typer.Option(metavar="HEX", help="It has to be this one, as shown; repeatable."),
]


@app.command()
def confidential(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="sev-snp or tdx.")],
    file: Evidence,
    measurement: Measurements,
    nonce: Nonce = "",
    public: PublicKey = None,
    data: Data = "",
    endorsement: Endorsements = None,
    root: Roots = None,
    least: Least = None,
    status: Statuses = None,
    processor: Processors = None,
    debug: Annotated[
        bool, typer.Option("--insecure-debug", help="Take a machine that may be debugged.")
    ] = False,
    migration: Annotated[
        bool, typer.Option("--allow-migration", help="Take one that an agent may move.")
    ] = False,
) -> None:
    """Verify what an AMD SEV-SNP or Intel TDX machine proves of itself; exit 1 if it is refused."""
    from g2d.protect.attestation.confidential import backend
    from g2d.protect.attestation.confidential.policy import UP_TO_DATE, Expected, check

    verifying = backend(kind)
    expected = Expected(
        measurements=_values(measurement),
        data=_data(nonce, _read(public) if public else b"", data),
        least=_numbers(least or ()),
        statuses=UP_TO_DATE | frozenset(status or ()),
        debug=debug,
        migrates=migration,
        machines=frozenset(text.lower() for text in processor or ()),
    )
    given, trusted = ([_read(path) for path in paths or ()] for paths in (endorsement, root))
    shown = verifying.verify(_read(file), given, trusted, datetime.now(UTC))
    _show(shown)
    check(shown, expected)
    print_line(f"{file} is of a {kind} machine that is what is expected.")


def _show(shown: Shown) -> None:
    for name, value in sorted(shown.measurements.items()):
        print_line(f"{name:<12} {value.hex()}")
    print_line(f"firmware     {', '.join(f'{name} {n}' for name, n in shown.firmware.items())}")
    if shown.status:
        print_line(f"status       {' '.join((shown.status, *shown.advisories))}")
    print_line(f"processor    {shown.machine}")


def _read(path: Path) -> bytes:
    """A file that the user names; lists of revoked certificates are the largest of them."""
    from g2d.core.files import read_plain

    try:
        return read_plain(path, _LARGEST, follow=True)
    except OSError as error:
        raise SealingError(f"cannot read {path}: {error.strerror}; check the path") from error


def _hex(text: str, what: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise SealingError(f"{what} is not in hex: {text[:40]!r}") from None


def _data(nonce: str, key: bytes, data: str) -> bytes:
    from g2d.protect.attestation.confidential.policy import bound_data

    if bool(nonce) == bool(data):
        raise typer.BadParameter("give --nonce, or --data, and not both")
    return bound_data(_hex(nonce, "the nonce"), key) if nonce else _hex(data, "--data")


def _values(given: Sequence[str]) -> Mapping[str, frozenset[bytes]]:
    found: dict[str, frozenset[bytes]] = {}
    for text in given:
        name, _, value = text.partition("=")
        found[name] = found.get(name, frozenset()) | {_hex(value, f"measurement {name}")}
    return found


def _numbers(given: Sequence[str]) -> Mapping[str, int]:
    found = {}
    for text in given:
        name, _, number = text.partition("=")
        if not number.isdecimal():
            raise SealingError(f"{text!r} is no security version, expected NAME=NUMBER")
        found[name] = int(number)
    return found
