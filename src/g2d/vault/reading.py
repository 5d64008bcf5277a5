"""What a vault's ledger and files say; everything here only reads, and trusts no row's values.

A row that cannot be what it should be is damaged: whoever lists rows may be told of each and go on
without it. Writing is in `vault`. Knows no torch.
"""

# ruff: noqa: S608 (the parts of queries are our own)

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from g2d.errors import VaultError
from g2d.vault.ledger import (
    COMMITMENT,
    LEDGER,
    SETTINGS,
    Frozen,
    connect_reader,
    explained,
    read_file,
    sha256,
)
from g2d.vault.plain import MOST_TEXT, check_folders, read_plain, read_text
from g2d.vault.records import (
    FOLDERS,
    LARGEST,
    RENEWAL,
    RENEWED,
    Entry,
    GenerationRecord,
    checked_entry,
    checked_generation,
    checked_object,
    checked_source,
    digest_of,
    entry_file,
    generation_folder,
    sound_rows,
)
from g2d.vault.sealing.envelope import About
from g2d.vault.sealing.sealer import Sealer

Damaged = Callable[[str], None]
"""Told of each row that cannot be read, which is left out then."""

_IDENTITY = re.compile(r"[0-9a-f]{32}")
_ROW = "number, files, manifest, created"
_NUMBER = f"typeof(number) = 'integer' AND number BETWEEN 1 AND {LARGEST}"
_EXPOSED = f"exposures WHERE {_NUMBER} AND number IN (SELECT number FROM generations)"
_NEWEST = "ORDER BY number DESC LIMIT ?"  # by the key: asked twice a second
_OTHERWISE = "make the next one with `g2d generate`"


class VaultReader:
    """The reading half of a `Vault`; any number of them beside one writer."""

    remembered: ClassVar[bool] = True
    """Whether what vaults of this class reach is marked, and that one is sealed is remembered."""

    path: Path
    _ledger: sqlite3.Connection
    _mutex: threading.RLock
    _file: os.stat_result | None = None  # the ledger's, as it was opened

    # --- the vault itself ------------------------------------------------------------------------

    @cached_property
    def sealing(self) -> Sealer:
        """What opens the files of a sealed vault, and seals those that are written."""
        return Sealer(self)

    @property
    def settings_text(self) -> str:
        """The text of task.toml, a plain file: what lies behind a link is not the vault's."""
        try:
            with explained(self.path, "read"):
                return read_text(self.path / SETTINGS)
        except UnicodeDecodeError as error:
            raise VaultError(f"{self.path / SETTINGS} is not UTF-8 text: {error}") from error

    def commitment(self) -> bytes:
        """What watermark.json holds, as it lies there; b"": there is none."""
        with explained(self.path, "read"):
            try:
                return read_plain(self.path / COMMITMENT, MOST_TEXT)
            except FileNotFoundError:
                return b""

    @property
    def identity(self) -> str:
        """Random id made with the vault, 32 digits; "" in an old one not yet opened for writing."""
        rows = self._rows("SELECT id FROM identity LIMIT 1") if self._has("identity") else []
        found = rows[0][0] if rows else ""
        return found if isinstance(found, str) and _IDENTITY.fullmatch(found) else ""

    @property
    def marked(self) -> bool:
        """Whether the ledger says that what it reached has been marked outside the vault."""
        return self._has("marked")

    @property
    def retired(self) -> int:
        """The highest number whose weights and attacks were given up; 0: none were."""
        if not self._has("retired"):
            return 0
        rows = self._rows("SELECT max(through) FROM retired WHERE typeof(through) = 'integer'")
        return rows[0][0] or 0

    @property
    def source(self) -> int:
        """The renewal whose base, members and generator count; 0: those that were made first."""
        return next((int(row["source"]) for row in self.sources(1)), 0)

    def sources(self, last: int = -1) -> list[dict[str, Any]]:
        """Return what every change of the source was noted with, in order, or the `last` ones."""
        if not self._has("sources"):
            return []
        rows = self._rows(
            "SELECT source, info, created FROM sources ORDER BY id DESC LIMIT ?", last
        )
        return sound_rows(checked_source, rows[::-1], "a change of the source", self._refuse)

    def replaced(self) -> bool:
        """Whether another ledger lies where the open one lay: what is read is not what is there."""
        if isinstance(self._ledger, Frozen) or self._file is None:
            return False  # it is opened anew each time
        try:
            now = (self.path / LEDGER).lstat()
        except OSError:
            return True
        return not os.path.samestat(self._file, now)

    def begun(self) -> bool:
        """Whether there is anything to lose: trained, generated, or handed in as the base."""
        kinds = ("base", "early", "member", "generator")
        return any(self.entries(kind) for kind in kinds) or self.last_number() > 0

    # --- entries ---------------------------------------------------------------------------------

    def entries(
        self, kind: str, damaged: Damaged | None = None, source: int | None = None
    ) -> list[Entry]:
        """Return all entries of a kind, sorted by index; a damaged row is an error, or is told.

        Args:
            source: the renewal that they are of; None: the one that counts now.
        """
        first = self._first(kind, source)
        where = "WHERE kind = ? AND position >= ? AND position < ? ORDER BY position"
        if not isinstance(first, int) or not first:  # rows that are no numbers are told, too
            where = "WHERE kind = ? AND NOT (typeof(position) = 'integer' AND position >= ?)"
            where += " ORDER BY position"
            return self._entries(where, kind, RENEWAL, damaged=damaged)
        return self._entries(where, kind, first, first + RENEWAL, damaged=damaged)

    def entry(self, kind: str, index: int = 0, source: int | None = None) -> Entry | None:
        """Return one entry, or None; an index below `RENEWAL` is one of the source's own."""
        at = self._place_of(kind, index, source)
        found = self._entries("WHERE kind = ? AND position = ?", kind, at)
        return found[0] if found else None

    def _first(self, kind: str, source: int | None) -> int:
        if kind not in RENEWED:
            return 0
        return (self.source if source is None else source) * RENEWAL

    def _place_of(self, kind: str, index: int, source: int | None = None) -> int:
        return index if index >= RENEWAL else index + self._first(kind, source)

    def read(self, entry: Entry, name: str = "weights") -> bytes:
        """Return a file's bytes once their SHA-256 equals the entry's digest."""
        what = f"{entry.kind} {entry.index}"
        digest = digest_of(entry.files, name, what)
        path = entry_file(self.path, entry, name)
        try:
            about = self.sealing.entry(entry, name)
            return self._read_file(path, digest, "run `g2d fit` to make it again", about)
        except VaultError:
            if self.entry(entry.kind, entry.index) != entry:
                raise VaultError(
                    f"{what} was replaced or deleted meanwhile: list it again."
                ) from None
            raise

    # --- generations -----------------------------------------------------------------------------

    def generations(self, damaged: Damaged | None = None) -> list[GenerationRecord]:
        """Return every accepted generation, by number; a damaged row is an error, or is told."""
        rows = self._rows(f"SELECT {_ROW} FROM generations ORDER BY number")
        return sound_rows(checked_generation, rows, "generation", damaged or self._refuse)

    def numbers(self, after: int = 0) -> list[int]:
        """Return the numbers above `after` of all that were accepted, be their rows damaged."""
        query = f"SELECT number FROM generations WHERE {_NUMBER} AND number > ? ORDER BY number"
        return [row[0] for row in self._rows(query, after)]

    def last_number(self) -> int:
        """Return the highest number in the ledger, 0 before the first generation."""
        rows = self._rows(f"SELECT number FROM generations WHERE {_NUMBER} {_NEWEST}", 1)
        return rows[0][0] if rows else 0

    def generation(self, number: int) -> GenerationRecord:
        """Return one generation; a number that was never accepted is a `VaultError`."""
        rows = self._rows(f"SELECT {_ROW} FROM generations WHERE number = ? LIMIT 1", number)
        if not rows:
            last = self.last_number() or None
            raise VaultError(f"{self.path} has no generation {number}; its last one is {last}.")
        (found,) = sound_rows(checked_generation, rows, "generation", self._refuse)
        return found

    def manifest_digest(self, number: int) -> str:
        """SHA-256 of a generation's manifest, as the ledger has it; "": it has none."""
        rows = self._rows("SELECT manifest FROM generations WHERE number = ?", number)
        return sha256(rows[0][0].encode()) if rows and isinstance(rows[0][0], str) else ""

    def read_generation(self, number: int, name: str = "weights") -> bytes:
        """Return a generation's file once its SHA-256 is right; "manifest" is manifest.json.

        Raises:
            VaultError: it is not what was accepted, or was given up since (`retired`).
        """
        folder = generation_folder(self.path, number)
        if name == "manifest" and (digest := self.manifest_digest(number)):
            return self._read_file(folder / "manifest.json", digest, _OTHERWISE)
        digest = digest_of(self.generation(number).files, name, f"generation {number}")
        if number <= self.retired:
            raise VaultError(
                f"generation {number} is retired: its weights and attacks were given up ([vault]"
                " keep says how many generations have theirs), and its manifest is all that is left"
            )
        about = self.sealing.generation(number, name, digest)
        return self._read_file(folder / f"{name}.safetensors", digest, _OTHERWISE, about)

    def generation_file(self, number: int, name: str = "weights") -> Path:
        """Return where a generation's file lies; what is read from there must be verified."""
        return generation_folder(self.path, number) / f"{name}.safetensors"

    def live(self) -> int | None:
        """Return the number of the live generation, None before the first."""
        return next(iter(self.exposures(1)), None)

    def exposures(self, last: int = -1) -> list[int]:
        """Return the numbers that have been live in order of first exposure, or the `last` ones."""
        rows = self._rows(f"SELECT number FROM {_EXPOSED} {_NEWEST}", last)
        return [row[0] for row in reversed(rows)]

    def rejections(self, damaged: Damaged | None = None) -> list[dict[str, Any]]:
        """Return what every `reject` was given, in order; a damaged row is an error, or is told."""
        rows = self._rows("SELECT info FROM rejections ORDER BY id")

        def read(info: Any) -> dict[str, Any]:
            return checked_object(info, strict=False)

        return sound_rows(read, rows, "a rejection", damaged or self._refuse)

    # --- rows ------------------------------------------------------------------------------------

    def _refuse(self, text: str) -> None:
        raise VaultError(
            f"{self.path}: {text}; restore the vault from a backup, or make the next one with"
            " `g2d generate`."
        )

    def _read_file(self, path: Path, digest: str, advice: str, about: About | None = None) -> bytes:
        """Read a file by its digest; `about`: what it is if it is sealed, None: it never is."""
        with explained(self.path, "read"):
            check_folders(self.path, path)
        opened = None if about is None else partial(self.sealing.content, about=about)
        return read_file(path, digest, advice, opened)

    def _has(self, table: str) -> bool:
        return bool(self._rows("SELECT 1 FROM sqlite_master WHERE name = ?", table))

    def _entries(self, where: str, *values: object, damaged: Damaged | None = None) -> list[Entry]:
        names = "kind, position, version, files, info, created"
        rows = self._rows(f"SELECT {names} FROM entries {where}", *values)
        found = sound_rows(checked_entry, rows, "an entry", damaged or self._refuse)
        return [entry for entry in found if entry.kind in FOLDERS]

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._mutex, explained(self.path, "read"):
            if isinstance(self._ledger, Frozen) and not self._ledger.in_transaction:
                # It never shows changes: take a fresh one (`in_transaction` raises if closed).
                self._ledger.close()
                self._ledger = connect_reader(self.path)
            return self._ledger.execute(query, values).fetchall()
