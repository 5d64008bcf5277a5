"""A basin that is ready joins the vault, by one commit of the vault's writer; nothing else changes.

The writer is a command, or a service's worker before it makes its next generation. How a basin is
grown is in `work`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from g2d.core.types import Values
from g2d.defence.growing.plan import Plan
from g2d.defence.staging import Staging, folder_in, in_use
from g2d.errors import VaultError
from g2d.vault.basins import AFTER, FIT, GROWING, stock_of
from g2d.vault.sealing.changing import share
from g2d.vault.sources import STAGED
from g2d.vault.vault import Entry, Put, Vault

PLAN, GENERATOR = "records", "generator"
"""Kinds of the two entries of the folder that are no checkpoints: its plan, and what was fitted."""

READY = "ready"
"""What the notes of a staged generator say once the basin may be taken up."""


@dataclass(frozen=True)
class TakenBasin:
    """A basin that is the vault's own now, and how many nobody has seen, it among them."""

    basin: int
    unseen: int

    @property
    def text(self) -> str:
        """What is told of it."""
        return f"basin {self.basin} was grown; basins that nobody has seen: {self.unseen}"


def grown_in(vault: Vault) -> Path:
    """The folder where a basin of this vault is grown.

    Raises:
        VaultError: a link, or a file, lies there.
    """
    return folder_in(vault, GROWING, "a basin that is grown")


def take_up_basin(vault: Vault) -> TakenBasin | None:
    """Take a basin over that is ready; None: none is, or a refresh waits, which goes first.

    Args:
        vault: open for writing.

    Raises:
        VaultError: what waits cannot be read, or is of what the vault holds no more; the vault
            stays as it is.
    """
    folder = grown_in(vault)
    if not (folder / "ledger.sqlite").is_file() or (vault.path / STAGED / "ledger.sqlite").exists():
        return None
    try:
        staged = Staging.open(folder, write=True)
    except VaultError as error:
        if in_use(error):
            return None  # it is being grown
        raise
    with staged:
        plan, fitted = Plan.read(staged.entry(PLAN)), staged.entry(GENERATOR)
        if plan is None or fitted is None or not fitted.info.get(READY):
            return None
        known = vault.entry("early", plan.basin)
        if known is not None and known.info.get("plan") == plan.id:
            shutil.rmtree(folder, ignore_errors=True)  # a kill came after the commit
            return None
        if not _is_for(plan, fitted, vault):
            raise VaultError(
                f"the basin that waits in {folder} was grown beside a population or a generator"
                f" that the vault has no more: `g2d grow {vault.path}` fits it to what is there, or"
                " begins it anew"
            )
        share(vault, staged)
        note = {"plan": plan.id, AFTER: vault.last_number()}
        if (spent := fitted.info.get("cpu_seconds")) is not None:
            note[FIT] = spent
        vault.put_all(_moved(staged, plan, fitted, note))
    shutil.rmtree(folder, ignore_errors=True)
    return TakenBasin(plan.basin, len(stock_of(vault).unseen))


def _is_for(plan: Plan, fitted: Entry, vault: Vault) -> bool:
    generator, base = vault.entry("generator"), vault.entry("base")
    return (
        generator is not None
        and base is not None
        and plan.about.get("vault") == vault.identity
        and plan.about.get("source") == vault.source
        and plan.about.get("base") == base.files["weights"]
        and fitted.info.get("of") == generator.files["weights"]
    )


def _moved(staged: Vault, plan: Plan, fitted: Entry, note: Values) -> Iterator[Put]:
    """What the vault takes over, under indices of its own."""
    early = [(plan.basin, entry) for entry in staged.entries("early")]
    members = [(plan.first + entry.index, entry) for entry in staged.entries("member")]
    for index, entry in (*early, *members, (0, fitted)):
        files = {name: staged.read(entry, name) for name in entry.files}
        yield entry.kind, index, files, {**entry.info, **note}
