"""The commands `g2d audit key|verify|show|export`: all but the first read audit logs alone.

Thin, like `main`, and as lazy. What a log is and how it is verified is in `protect.audit`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2d.cli.console import print_line
from g2d.errors import G2DError

if TYPE_CHECKING:
    from g2d.protect.audit.records import Record
    from g2d.protect.audit.verify import Report

app = typer.Typer(
    name="audit",
    help="Audit logs of services: who did what, chained and signed.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LogFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="An audit log, or the vault that it is of.")
]


@app.command()
def key(
    custodian: Annotated[
        str,
        typer.Option(
            metavar="CUSTODIAN",
            help="What opens the key's file: file:PATH, pkcs11:... or tpm:; else it is plain.",
        ),
    ] = "",
) -> None:
    """Make this machine's audit key before a service does, opened by a custodian alone."""
    from g2d.cli.shared import made_custodian
    from g2d.protect.audit.places import default_public, make_audit_key, private_file

    if private_file().exists():
        raise G2DError(
            f"{private_file()} is there: to have it opened by a custodian, run"
            f" `g2d keys seal {private_file()} --custodian CUSTODIAN`"
        )
    made = make_audit_key(url := made_custodian(custodian))
    print_line(f"private key  {private_file()} (mode 600; it signs audit logs, and nothing else)")
    print_line(f"public key   {default_public()} (keep a copy on another machine)")
    print_line(f"fingerprint  {made.fingerprint}")
    if url:
        print_line(f"opened by    {url}")


@app.command()
def verify(
    file: LogFile,
    key: Annotated[
        Path | None,
        typer.Option(metavar="PUB", help="Public audit key; else this machine's own."),
    ] = None,
    after: Annotated[
        str,
        typer.Option(metavar="HEAD", help="Verified before up to here; older may be missing."),
    ] = "",
    expect: Annotated[
        list[str] | None,
        typer.Option(metavar="HEAD", help="A head noted elsewhere, to be found; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Verify a log's chain and signatures; exit 1 if anything is wrong. It may be in use."""
    from g2d.protect.audit import verify as verifying
    from g2d.protect.audit.places import anchor_file, public_key, read_anchor
    from g2d.protect.audit.records import Head

    log = _log_of(file)
    start = Head.read(after) if after else None
    known = [Head.read(text) for text in expect or ()]
    trusted = public_key(key)
    anchor = read_anchor(anchor_file(log))
    found = verifying.verify(log, trusted, start, known, anchor)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"sound": found.sound}, indent=1))
    else:
        _print_report(found, anchored=bool(anchor or known))
    if not found.sound:
        count = sum(problem.kind != "gap" for problem in found.problems)
        many = "1 problem" if count == 1 else f"{count} problems"
        raise G2DError(f"{log} has {many}: keep it as it is, and find out who could write it")


@app.command()
def show(
    file: LogFile,
    last: Annotated[int, typer.Option(min=1, help="How many records to show.")] = 20,
) -> None:
    """Show the last records and the head, to note elsewhere; nothing is verified."""
    from collections import deque

    from g2d.protect.audit.verify import read_records

    records = deque(read_records(_log_of(file)), maxlen=last)
    if not records:
        raise G2DError(f"{file} has no records yet: a service writes them")
    for record in records:
        facts = json.dumps(record.facts, ensure_ascii=False)
        print_line(f"{record.sequence:>7} {record.time[:23]}Z {record.name:<16} {facts}")
    print_line(f"head {records[-1].head()}")


@app.command()
def export(
    file: LogFile,
    ocsf: Annotated[bool, typer.Option("--ocsf", help="As OCSF 1.3.0 has them.")] = False,
    after: Annotated[
        int, typer.Option(min=0, metavar="SEQUENCE", help="Only what follows this record.")
    ] = 0,
) -> None:
    """Print records, a JSON object a line, for a SIEM; verify the log itself, not this."""
    from g2d.protect.audit.ocsf import to_ocsf
    from g2d.protect.audit.verify import read_records

    log = ""
    for record in read_records(_log_of(file)):
        log = log or _identity(record)
        if record.sequence > after:
            line = json.dumps(to_ocsf(record, log)) if ocsf else record.line().decode()
            typer.echo(line)


def _identity(record: Record) -> str:
    name = record.facts.get("log") if record.name.startswith("audit.") else None
    return name if isinstance(name, str) else ""


def _log_of(file: Path) -> Path:
    from g2d.protect.audit.places import default_log

    return default_log(file) if file.is_dir() else file


def _print_report(found: Report, anchored: bool) -> None:
    for problem in found.problems:
        print_line(str(problem))
    print_line(f"log          {found.log or 'unknown'}")
    print_line(f"head         {found.head}")
    many = f"{found.records} records, {found.checkpoints} checkpoints"
    recovered = f", taken up {found.recovered} times after a torn line" if found.recovered else ""
    print_line(f"read         {many}{recovered}")
    if found.unsigned or found.torn:
        torn = ", and ends in the midst of one" if found.torn else ""
        print_line(f"unsigned     the last {found.unsigned} records{torn}: they prove nothing yet")
    if not anchored:
        print_line(
            "no anchor    that it was cut at an earlier checkpoint would not be found: give a head"
            " that you noted with --expect"
        )
    if found.sound:
        print_line("The chain and every signature are right.")
