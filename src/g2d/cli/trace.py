"""`g2d trace`: which generation of a vault a suspect was made from; thin, and as lazy as `main`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2d.cli.console import print_line, print_table, say
from g2d.cli.shared import (
    AcceptCode,
    DataFolder,
    TaskPath,
    VaultPath,
    code_to_load,
    configure_torch,
    vault_settings,
)
from g2d.core.files import write_bytes
from g2d.errors import KeyFileError, SettingsError

if TYPE_CHECKING:
    from g2d.defence.defence import Defence
    from g2d.protect.fingerprint import Accused
    from g2d.protect.trace.judgement import Candidate


def trace(
    vault: VaultPath,
    suspect: Annotated[
        Path, typer.Argument(metavar="SUSPECT", help="File of the weights that were found.")
    ],
    top: Annotated[int, typer.Option(min=1, help="How many candidates to list.")] = 5,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all candidates as JSON.")
    ] = None,
    replica: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name of a replica that may be told; repeatable."),
    ] = None,
    data: DataFolder = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Say which generation weights were made from, however pruned, permuted or mixed.

    Nobody is accused but at p <= 1e-6 over all that might be named; the vault is only read.
    """
    bound = code_to_load(vault, vault_settings(vault), accept_code)
    configure_torch()
    from g2d.defence.defence import Defence
    from g2d.defence.tracing import Tracer
    from g2d.weights.checkpoints import load_checkpoint

    found = load_checkpoint(suspect)
    where = "" if data is None else str(data.absolute())
    with Defence.open(vault, write=False, data=where, code=bound) as defence:
        tracer = Tracer(defence, lambda line: say(line, "note: "))
        verdict = tracer.trace(found, str(suspect))
        print_table([_row(candidate) for candidate in verdict.candidates[:top]])
        print_line(f"verdict      {verdict}")
        try:
            copies = _copies(defence, tracer.replicas(found, verdict), replica or ())
        except (KeyFileError, SettingsError) as error:  # whoever has a copy need not have the key
            copies = []
            say(f"replicas are not told apart: {error}", "note: ")
    for copy in copies:
        print_line(f"replica      {_told(copy)}")
    if as_json is not None:
        record = {"suspect": str(suspect), **verdict.record(), "replicas": copies}
        write_bytes(as_json, (json.dumps(record, indent=1) + "\n").encode())


def _row(candidate: Candidate) -> dict[str, str]:
    from g2d.protect.trace.judgement import shown

    return {
        "network": str(candidate.who),
        "cosine": f"{candidate.cosine:.3f}",
        "score": f"{candidate.score:.1f}",
        "needed": f"{candidate.needed:.1f}",
        "p": shown(candidate.p).removeprefix("p = ").removeprefix("p "),
        "share": f"{candidate.share:.0%}" if candidate.share else "-",
    }


def _copies(
    defence: Defence, accused: Mapping[int, Sequence[Accused]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Of each generation that carries marks a line for each copy; one without names where none."""
    from g2d.protect.fingerprint import secret_for, slot_of

    if not accused:
        return []
    secret = secret_for(defence.settings)
    of = {slot_of(secret, name): name for name in names}
    return [
        {"generation": number, "slot": one.slot, "name": of.get(one.slot, ""), "p": one.p}
        if one
        else {"generation": number, "slot": None, "name": "", "p": 1.0}
        for number, found in accused.items()
        for one in found or (None,)
    ]


def _told(copy: Mapping[str, Any]) -> str:
    from g2d.protect.trace.judgement import shown

    number, slot = copy["generation"], copy["slot"]
    if slot is None:
        return f"no accusation: no replica's marks are found in generation {number}'s part"
    name = copy["name"] or "a name that was not given: see --replica"
    return f"slot {slot} of generation {number} ({name}), {shown(copy['p'])}"
