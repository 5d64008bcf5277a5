"""A challenger that is ready becomes the source of generations, by one commit of a vault's writer.

The writer is a command, or a service's worker before it makes its next generation; so it is with
going back. How a challenger is made is in `work`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2d.defence.renewal import current
from g2d.defence.staging import Staging, folder_in, in_use
from g2d.errors import VaultError
from g2d.tasks.source import resolve, travels, unrenewed
from g2d.vault.records import RENEWAL
from g2d.vault.sealing.changing import share
from g2d.vault.sources import STAGED, obey
from g2d.vault.vault import Entry, Put, Vault

if TYPE_CHECKING:
    from g2d.defence.defence import Defence

READY = "ready"
"""What the notes of a staged generator say once the challenger may be taken up."""


@dataclass(frozen=True)
class Taken:
    """What the source of generations is now, and what it was before."""

    source: int
    before: int
    text: str


def staged_in(vault: Vault) -> Path:
    """The folder where a refresh of this vault is made.

    Raises:
        VaultError: a link, or a file, lies there.
    """
    return folder_in(vault, STAGED, "a refresh")


def made_for(records: Entry | None, vault: Vault) -> bool:
    """Whether a staged challenger was forked from what the vault's source is now."""
    generator = vault.entry("generator")
    return (
        records is not None
        and generator is not None
        and all(isinstance(records.info.get(name), str) for name in ("id", "given"))
        and records.info.get("vault") == vault.identity
        and records.info.get("parent") == vault.source
        and records.info.get("generator") == generator.files["weights"]
    )


def take_up(vault: Vault) -> Taken | None:
    """Change the source as was asked for: back, or to a challenger that is ready; None: nothing is.

    Args:
        vault: open for writing.

    Raises:
        VaultError: what waits cannot be read, or was made of what is not the source any more; the
            source stays.
    """
    if back := obey(vault):
        text = f"generations come from the former population again ({_name(back.source)})"
        return Taken(back.source, back.left, text)
    folder = staged_in(vault)
    if not (folder / "ledger.sqlite").is_file():
        return None
    try:
        staged = Staging.open(folder, write=True)
    except VaultError as error:
        if in_use(error):
            return None  # it is being made
        raise
    with staged:
        generator, records = staged.entry("generator"), staged.entry("records")
        if generator is None or records is None or not generator.info.get(READY):
            return None
        if _was_taken(vault, records):
            shutil.rmtree(folder, ignore_errors=True)  # a kill came after the commit
            return None
        if not made_for(records, vault):
            raise VaultError(
                f"the refresh that waits in {folder} was made of a population or a generator that"
                " is the source no more: run `g2d refresh` with its data once more, or remove that"
                " folder"
            )
        share(vault, staged)
        before = vault.source
        number = 1 + max((row["source"] for row in vault.sources()), default=0)
        info = {
            "why": "refresh", "parent": before, "given": records.info["given"],
            "accepted": generator.info.get("accepted", []),
            "checks": generator.info.get("checks", []),
        }  # fmt: skip
        vault.renew(number, info, _moved(staged, number, generator.info))
    shutil.rmtree(folder, ignore_errors=True)
    text = f"generations come from {_name(number)} from now on"
    if accepted := info["accepted"]:
        text += (
            f"; its data had failed checks, which was accepted ({', '.join(map(str, accepted))})"
        )
    return Taken(number, before, text)


def _was_taken(vault: Vault, records: Entry) -> bool:
    """Whether this very challenger was taken up before; it is not once more after a rollback."""
    for source in {row["source"] for row in vault.sources()} - {0}:
        known = vault.entry("records", source=source)
        if known is not None and known.info.get("id", "") == records.info.get("id"):
            return True
    return False


def _moved(staged: Vault, number: int, about: dict[str, Any]) -> Iterator[Put]:
    """What the vault takes over, under the indices of its renewal."""
    for kind in ("records", "base", "member", "generator"):
        for entry in staged.entries(kind):
            files = {name: staged.read(entry, name) for name in entry.files}
            info = dict(entry.info)
            if kind == "records":
                info["accepted"] = about.get("accepted", [])
            yield kind, number * RENEWAL + entry.index, files, info


def _name(source: int) -> str:
    return f"renewal {source}" if source else "the first population"


def follow(defence: Defence) -> Defence:
    """The same defence by the vault's source as it is now; the vault stays open."""
    from g2d.defence.defence import Defence

    named = unrenewed(defence.source)
    former = resolve(named) if travels(named) else _former(defence)
    task, source = current(former, named if travels(named) else former, defence.vault)
    made = Defence(task, source, defence.vault, defence.settings, defence.code)
    made.on_damage = defence.on_damage
    return made


def _former(defence: Defence) -> Any:
    """A task that was given as an object, without what refreshes have added."""
    from dataclasses import replace

    task = defence.task
    return replace(task, splits=task.splits.former) if task.splits.added("train") else task
