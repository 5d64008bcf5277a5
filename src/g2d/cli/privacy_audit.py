"""`g2d privacy plant|audit`: canaries in a vault of their own, and what they prove of a guarantee.

Thin, like `main`, and as lazy. What an audit does is in `redteam.privacy_audit`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from g2d.cli.console import print_line, print_table
from g2d.cli.flags import Given, Set, merged, read_changes, with_flags
from g2d.cli.progress import show_progress
from g2d.cli.shared import (
    AcceptCode,
    DataFolder,
    KeyCustodian,
    TaskPath,
    VaultPath,
    code_to_load,
    configure_torch,
    made_custodian,
    prepare,
    task_path_again,
    vault_settings,
)
from g2d.core.files import write_bytes
from g2d.errors import G2DError, PrivacyError
from g2d.settings import Settings

if TYPE_CHECKING:
    from g2d.redteam.privacy_audit import Audit

KeyFile = Annotated[
    Path,
    typer.Option("--key", metavar="FILE", help="The canaries' secret; never inside a vault."),
]


@with_flags(
    Settings,
    into="given",
    names={"task": "task__name", "data": "task__data"},
    defaults=False,
)
def plant(
    vault: VaultPath,
    key: KeyFile,
    given: Given,
    canaries: Annotated[int, typer.Option(min=1, help="How many coins fall.")] = 1000,
    guesses: Annotated[
        int | None, typer.Option(min=1, help="How many will be guessed; else a fifth of them.")
    ] = None,
    kind: Annotated[
        Literal["mislabelled", "blended"],
        typer.Option(help="Records with another label, or means of two records with one."),
    ] = "mislabelled",
    custodian: KeyCustodian = "",
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; flags override them.")
    ] = None,
    changes: Set = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Make a vault whose population will learn half of its canaries: to be audited, not served."""
    flags = merged(given, read_changes(changes or ()))
    there = (vault / "ledger.sqlite").exists()
    if not there and settings is None and "task__name" not in flags:
        raise G2DError(
            f"there is no vault at {vault}: name the task of a new one with --task, or its settings"
            " with --settings"
        )
    defence, _ = prepare(vault, settings, flags, accept_code)
    from g2d.defence.planting import plant_canaries

    made = guesses or max(1, canaries // 5)
    with defence:
        plant_canaries(defence, key, canaries, made, kind, custodian=made_custodian(custodian))
        private = defence.settings.privacy
    print_line(f"canaries     {canaries} {kind}, each planted or not by a coin of its own")
    print_line(f"key          {key} (mode 600): it alone says which; keep it from who trains")
    _print_power(canaries, made, private.delta, 0.05)
    if not private.enabled:
        print_line("claim        none, as [privacy] enabled is false: nothing can be refuted")
    print_line("This vault is for an audit: it is not served, and its manifests say so.")
    print_line(f"Next: g2d population {vault}{task_path_again(task_path)}")


def audit(
    vault: VaultPath,
    key: KeyFile,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="That no sound guarantee is refuted.")
    ] = 0.95,
    references: Annotated[
        int,
        typer.Option(min=0, help="Networks trained as the base is, but without canaries."),
    ] = 2,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what was found as JSON.")
    ] = None,
    data: DataFolder = None,
    task_path: TaskPath = None,
    accept_code: AcceptCode = False,
) -> None:
    """Guess planted coins from everything that was released; exit 1 if the guarantee is refuted."""
    code_to_load(vault, vault_settings(vault), accept_code)
    configure_torch()
    from g2d.protect.privacy.canary_key import CanaryKey
    from g2d.redteam.privacy_audit import audit as auditing

    where = "" if data is None else str(data.absolute())
    known = CanaryKey.read(key)
    with show_progress() as progress:
        found = auditing(
            vault, known, data=where, alpha=1 - confidence, references=references,
            progress=progress,
        )  # fmt: skip
    _print_audit(found)
    if as_json is not None:
        write_bytes(as_json, (json.dumps(found.as_json(), indent=1) + "\n").encode())
    if found.refuted:
        raise PrivacyError(
            f"the guarantee is refuted: {vault} claims epsilon {found.claim:.3g} at delta"
            f" {found.delta:g}, and gives away more. Do not release what was made by these settings"
        )


def _print_audit(found: Audit) -> None:
    told = found.guesses
    rows = [
        {"by": kind, "networks": str(found.networks[kind]), "right": f"{own.right} of {own.made}"}
        for kind, own in found.by_kind.items()
    ]
    both = {"by": "all together", "networks": str(sum(found.networks.values()))}
    print_table([*rows, {**both, "right": f"{told.right} of {told.made}"}])
    sure = f"{100 * (1 - found.alpha):.6g} % sure"
    print_line(f"lower bound  epsilon {found.bound:.3f} at delta {found.delta:g} ({sure})")
    print_line(f"             {found.gaussian:.3f} if its trade-off curve is a Gaussian's")
    claim = f"epsilon {found.claim:.3f}" if math.isfinite(found.claim) else "none"
    print_line(f"claim        {claim}")
    for line in found.uncovered[:5]:
        print_line(f"             not covered: {line}")
    if found.p is not None:
        verdict = "it allows for less" if found.p < found.alpha else "it allows for that"
        print_line(
            f"             by its whole curve, guesses as good: p = {found.p:.3g} ({verdict})"
        )
    _print_power(told.canaries, told.made, found.delta, found.alpha)
    if not found.refuted and math.isfinite(found.claim):
        print_line("The claim is not refuted: an attack that is not tried here may do better.")


def _print_power(canaries: int, guesses: int, delta: float, alpha: float) -> None:
    from g2d.protect.privacy.audit_bounds import power

    most, all_of_them = (
        power(canaries, guesses, delta, alpha),
        power(canaries, canaries, delta, alpha),
    )
    print_line(
        f"power        {guesses} guesses can certify no more than {most:.1f}, were all of them"
        f" right; {canaries} canaries no more than {all_of_them:.1f}"
    )


def add_to(app: typer.Typer) -> None:
    """Attach the commands to the group `g2d privacy`."""
    for command in (plant, audit):
        app.command()(command)
