"""`g2d privacy VAULT`: what a vault guarantees, and what not; thin, like `main`, and as lazy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from g2d.cli.console import print_line, print_table
from g2d.cli.shared import VaultPath, vault_settings
from g2d.errors import PrivacyError


def show(
    vault: VaultPath,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Public key: every line of the ledger is signed by it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the statement as JSON.")] = False,
) -> None:
    """State the guarantee for each release and in total, and what is not covered.

    Exit 1 where the ledger is not what was recorded, or a line is not signed by `--key`.
    """
    from g2d.protect.privacy.statement import state
    from g2d.vault.keys import read_public
    from g2d.vault.vault import Vault

    settings, trusted = vault_settings(vault), read_public(key) if key else None
    with Vault.open(vault) as opened:
        found = state(opened, settings, trusted)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        for name, line in found.plain():
            print_line(f"{name:<12} {line}")
        print_table(
            [
                {
                    "block": one.name,
                    "epsilon": _shown(one.epsilon),
                    "naive": _shown(one.naive),
                    "spendings": str(one.spendings),
                }
                for one in found.blocks
            ]
        )
        print_table(
            [
                {
                    "release": row.name,
                    "epsilon": _shown(row.epsilon),
                    "spendings": str(row.spendings) if not row.why else "-",
                    "covered": f"no: {row.why}" if row.why else "yes",
                }
                for row in found.rows
            ]
        )
        print_line("not covered:")
        for line in found.not_covered:
            print_line(f"- {line}")
    if found.unsigned:
        raise PrivacyError(
            f"{len(found.unsigned)} lines of the privacy ledger of {vault} are not signed by {key},"
            f" the first of them line {found.unsigned[0]}: it was written before the vault was"
            " signed, with another key, or by somebody else"
        )


def _shown(epsilon: float) -> str:
    return f"{epsilon:.3f}" if math.isfinite(epsilon) else "infinite"


def add_to(app: typer.Typer) -> None:
    """Attach the command to the group `g2d privacy`."""
    app.command()(show)
