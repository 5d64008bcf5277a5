"""A task as a vault knows it: with an audit's canaries, and with the records of the renewals that
led to what is the source of generations now.

What a renewal is, and how one is made or put back, is in `refresh` and `vault.sources`.
"""

from __future__ import annotations

from g2d.errors import DataError, VaultError
from g2d.tasks.keyed import unpack_records
from g2d.tasks.source import (
    Grown,
    TaskSource,
    data_digest,
    travels,
    with_canaries,
    with_records,
)
from g2d.tasks.splits import Splits
from g2d.tasks.task import Task
from g2d.vault.records import PLANTED
from g2d.vault.vault import Entry, Vault


def lineage(vault: Vault, source: int) -> list[Entry]:
    """The records of a renewal and of those that it was made from, oldest first.

    Raises:
        VaultError: there is no such renewal, or the ledger says nonsense of it.
    """
    found: list[Entry] = []
    while source > 0:
        entry = vault.entry("records", source=source)
        parent = entry.info.get("parent") if entry else None
        if entry is None or type(parent) is not int or not 0 <= parent < source:
            raise VaultError(
                f"{vault.path} lacks the records of renewal {source}; restore it from a backup"
            )
        found.append(entry)
        source = parent
    return found[::-1]


def records_of(vault: Vault, source: int) -> tuple[bytes, ...]:
    """The files of records that a renewal knows, oldest first; none of source 0."""
    return tuple(vault.read(entry) for entry in lineage(vault, source))


def planted(task: Task, source: TaskSource, vault: Vault) -> tuple[Task, TaskSource]:
    """A task and how workers get at it, with the canaries that were planted in a vault, if any.

    Raises:
        DataError: they are of another task, or of other data.
    """
    entry = vault.entry(PLANTED)
    if entry is None:
        return task, source
    found = data_digest(task)
    if entry.info.get("data") != found:  # places in other data are other records
        base = vault.entry("base", source=0)
        if base is not None and base.info.get("data") == found:
            return task, source  # it was given as an object that is this vault's already
        raise DataError(
            f"the data of task {task.name!r} are not those that the canaries of {vault.path} were"
            " planted in (other files, order or split seed): point --data at the original, or plant"
            " others in a new vault"
        )
    return with_canaries(task, source, vault.read(entry))


def current(task: Task, source: TaskSource, vault: Vault) -> tuple[Task, TaskSource]:
    """A vault's own task and how workers get at it, with what the vault's source knows."""
    records = records_of(vault, vault.source)
    if not records:
        return task, source
    grown = with_records(task, records)
    return grown, Grown(source, records) if travels(source) else grown


def splits_of(task: Task, vault: Vault, source: int) -> Splits:
    """The splits that attacks point into of a generation that was made from a renewal.

    Args:
        task: as any renewal knows it.
    """
    splits = task.splits.former
    for data in records_of(vault, source):
        splits = splits.with_more(unpack_records(data))
    return splits
