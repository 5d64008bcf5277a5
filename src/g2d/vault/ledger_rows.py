"""All rows of a ledger at one moment, for who checks them: the values may be anything.

Knows no torch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2d.vault.ledger import check_ledger, connect_reader, explained

_TABLES = ("entries", "generations", "exposures", "rejections")


@dataclass(frozen=True)
class Rows:
    """The ledger as it was at one moment; the values are whatever somebody wrote there.

    Attributes:
        given_up: first and last numbers that were issued in a ledger which an older one replaced,
            deliberately. retired: the highest number whose weights were given up.
    """

    entries: list[Any]
    generations: list[Any]
    exposures: list[Any]
    rejections: list[Any]
    damage: list[str]
    given_up: list[tuple[int, int]]
    retired: int

    @property
    def live(self) -> int:
        """The highest number that was exposed; 0: none was."""
        return max((number for number, _ in self.exposures if type(number) is int), default=0)

    def gaps(self, sound: Collection[int]) -> Iterator[tuple[int, int]]:
        """First and last of each range of numbers below the last sound one that have no rows."""
        last, before = max(sound, default=0), 0
        ranges = [(n, n) for (n, *_) in self.generations if type(n) is int and 1 <= n <= last]
        for first, upto in sorted([*ranges, *self.given_up]):
            if before + 1 < first <= last:  # a range: one row can claim any number
                yield before + 1, first - 1
            before = max(before, upto)


def gap_text(first: int, last: int) -> str:
    """Say that generations are missing."""
    if first == last:
        return f"generation {first} has no row: numbers rise by one"
    return f"generations {first} to {last} have no rows: numbers rise by one"


def read_rows(path: Path) -> Rows:
    """All rows of one moment, and what SQLite says of the ledger's pages.

    Raises:
        VaultError: the ledger cannot be read.
    """
    with explained(path, "read"), closing(connect_reader(path)) as ledger:
        check_ledger(path, ledger)
        ledger.execute("BEGIN")
        said = [str(row[0]) for row in ledger.execute("PRAGMA integrity_check(20)")]
        entries, generations, exposures, rejections = (
            ledger.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()  # noqa: S608
            for name in _TABLES
        )
        given_up = _whole(ledger, "marked", "first, last")
        retired = [row[0] for row in _whole(ledger, "retired", "through")]
    damage = [text for text in said if text != "ok"]
    return Rows(
        entries, generations, exposures, rejections, damage, given_up, max(retired, default=0)
    )


def _whole(ledger: sqlite3.Connection, table: str, columns: str) -> list[Any]:
    """Rows of whole numbers of a table that an older vault does not have."""
    if not ledger.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchall():
        return []
    rows = ledger.execute(f"SELECT {columns} FROM {table}").fetchall()  # noqa: S608
    return [row for row in rows if all(type(value) is int for value in row)]
