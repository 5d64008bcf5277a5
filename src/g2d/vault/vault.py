"""The vault: the folder that holds one defended task, and the ledger that says what counts.

Files are opaque bytes named by their SHA-256; what is inside them (safetensors) is decided
elsewhere. Knows no torch and loads no pickle. `ledger.sqlite` is the source of truth: a file
counts only once its row is committed, so a process killed at any moment leaves a vault that opens.
How files and rows reach the disk is in `ledger`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Self

from g2d.core.folders import PRIVATE
from g2d.errors import VaultError
from g2d.vault.confirmed import confirm_key, key_named, key_there
from g2d.vault.ledger import (
    COMMITMENT,
    FORMAT,
    LEDGER,
    SETTINGS,
    check_ledger,
    connect,
    connect_reader,
    explained,
    give_identity,
    is_vacant,
    make_ledger,
    take_lock,
)
from g2d.vault.placing import check_private, place, remove_weights, tidy, write
from g2d.vault.reading import VaultReader
from g2d.vault.records import (
    FOLDERS,
    SIGNATURE,
    Entry,
    GenerationRecord,
    digests_of,
    entry_file,
    generation_folder,
    may_be,
    to_json,
)
from g2d.vault.rollback import Watermark

__all__ = ["FORMAT", "SIGNATURE", "Entry", "GenerationRecord", "Put", "Vault"]

Put = tuple[str, int, Mapping[str, bytes], Mapping[str, Any]]
"""An entry to keep: kind, index, files and notes."""


class Vault(VaultReader):
    """The folder of one defended task: one writer at a time, any number of readers.

    Use `Vault.create` or `Vault.open`, as a context manager or with `close()`. Methods may be
    called from several threads. Every failure is a `VaultError`, and leaves what was accepted.
    What a writer reaches is marked outside the vault (`mark`), and a vault behind its mark is not
    opened for writing.
    """

    def __init__(self, path: Path, ledger: sqlite3.Connection, lock: FileIO | None) -> None:
        self.path = path
        self._ledger = ledger
        self._lock = lock
        self._mutex = threading.RLock()
        with suppress(OSError):
            self._file = (path / LEDGER).lstat()
        self._mark = Watermark()

    @classmethod
    def create(cls, path: Path | str, settings_toml: str) -> Vault:
        """Make a new vault in an absent or empty folder and open it for writing."""
        path = Path(path).absolute()
        with explained(path, "written"):
            if path.exists() and not is_vacant(path):
                raise VaultError(
                    f"{path} is not an empty folder. Name one that is absent or empty."
                )
            path.mkdir(PRIVATE, parents=True, exist_ok=True)
            there = key_there(path / SETTINGS)
            path.chmod(PRIVATE)  # it may have been there
            with ExitStack() as undo:
                lock = undo.enter_context(take_lock(path))
                vault = cls(path, make_ledger(path, settings_toml), lock)
                undo.callback(vault.close)
                key = key_named(settings_toml)
                if cls.remembered:
                    vault._mark.begin(vault, vault._ledger)
                if cls.remembered and key and key != there:  # what lay there is no word of ours
                    confirm_key(vault, key)
                undo.pop_all()
            return vault

    @classmethod
    def open(cls, path: Path | str, write: bool = False) -> Vault:
        """Open a vault; `write=True` takes the writer's lock and removes what a kill left behind.

        Raises:
            VaultError: the folder is absent, not a vault, of a newer format, corrupt, or locked; to
                write: open to others (the command that closes it is told), or behind its mark.
        """
        path = Path(path).absolute()
        with explained(path, "written" if write else "read"):
            if not path.is_dir():
                raise VaultError(f"there is no vault at {path}: no such folder. Check the path.")
            if not (path / LEDGER).is_file():
                raise VaultError(f"{path} is not a vault: it holds no {LEDGER}. Check the path.")
            with ExitStack() as undo:
                lock = undo.enter_context(take_lock(path)) if write else None
                if write:
                    check_private(path)  # what cannot be written at all is said before
                ledger = connect(path, "rw") if write else connect_reader(path)
                undo.callback(ledger.close)
                check_ledger(path, ledger)
                vault = cls(path, ledger, lock)
                vault.sealing.settle()
                if write:
                    if cls.remembered:
                        vault._mark.take_up(vault, ledger)
                        vault.sealing.check_not_lost()
                    give_identity(ledger)
                    vault._tidy()
                undo.pop_all()
            return vault

    def close(self) -> None:
        """Close the ledger and let the next writer in."""
        with self._mutex:
            if self._lock is not None:
                self._checkpoint()  # beside a service that reads, the last to close is not us
            self._ledger.close()
            if self._lock is not None:
                self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_settings(self, text: str) -> None:
        """Replace task.toml; a key that it names now, and did not before, was meant by the user."""
        new, old = key_named(text), ""
        with suppress(VaultError):
            old = key_named(self.settings_text)
        with self._writing():
            write(self.path, self.path / SETTINGS, text.encode())
        if new and new != old and self.remembered:
            confirm_key(self, new)

    def write_commitment(self, data: bytes) -> None:
        """Publish the commitment to a watermark: one, for a later one would prove less.

        Raises:
            VaultError: there is one, or it cannot be written.
        """
        with self._writing():
            if os.path.lexists(self.path / COMMITMENT):
                raise VaultError(
                    f"{self.path} has a {COMMITMENT} already, which is never replaced."
                )
            write(self.path, self.path / COMMITMENT, data)

    def put(
        self, kind: str, index: int, files: Mapping[str, bytes], info: Mapping[str, Any]
    ) -> Entry:
        """Keep one entry, replacing the one of the same kind and index.

        A replacement gets file names of its own (`000012.v2.safetensors`), so no kill can leave
        the ledger pointing at other bytes. `index` of a base or a generator is 0.
        """
        return self.put_all([(kind, index, files, info)])[0]

    def put_all(self, entries: Iterable[Put]) -> list[Entry]:
        """Keep entries as `put` does, in one commit: all of them, or none whatever happens."""
        with self._writing():
            kept = [self._place(*entry) for entry in entries]
        if any(entry.version > 1 for entry in kept):
            self._try_tidy()
        return kept

    def renew(self, source: int, info: Mapping[str, Any], entries: Iterable[Put] = ()) -> None:
        """Make another renewal the source of generations; its entries are kept in the same commit.

        Args:
            source: its number; 0: base, members and generator that were made first. info: what is
                noted of it.
        """
        with self._writing():
            for entry in entries:
                self._place(*entry)
            if self.entry("generator", source=source) is None:
                raise VaultError(f"{self.path} has no generator of renewal {source}.")
            self._ledger.execute(
                "CREATE TABLE IF NOT EXISTS sources"
                " (id INTEGER PRIMARY KEY, source INTEGER, info TEXT, created REAL)"
            )
            row = (source, to_json(info, "info"), time.time())
            self._ledger.execute(
                "INSERT INTO sources (source, info, created) VALUES (?, ?, ?)", row
            )

    def _place(
        self, kind: str, index: int, files: Mapping[str, bytes], info: Mapping[str, Any]
    ) -> Entry:
        """Write the files and the row of one entry, within a commit."""
        if kind not in FOLDERS:
            raise VaultError(f"unknown kind {kind!r}, expected one of {', '.join(FOLDERS)}.")
        if not may_be(kind, index):
            raise VaultError(f"a {kind} has no index {index}: expected 0, or more in a list.")
        index = self._place_of(kind, index)
        digests, notes = digests_of(files), to_json(info, "info")
        old = self.entry(kind, index)
        version = old.version + 1 if old else 1
        entry = Entry(kind, index, digests, json.loads(notes), time.time(), version)
        for name, data in files.items():
            sealed = self.sealing.shut(data, partial(self.sealing.entry, entry, name))
            write(self.path, entry_file(self.path, entry, name), sealed)
        row = (kind, index, version, to_json(digests, "files"), notes, entry.created)
        self._ledger.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)
        return entry

    def delete(self, kind: str) -> None:
        """Drop all entries of a kind: rows first, files after."""
        with self._writing():
            self._ledger.execute("DELETE FROM entries WHERE kind = ?", (kind,))
        self._try_tidy()

    def accept(
        self,
        files: Mapping[str, bytes],
        manifest: Mapping[str, Any],
        activate: bool = False,
        sign: Callable[[bytes], bytes] | None = None,
    ) -> GenerationRecord:
        """Keep a candidate as the next generation and, if `activate`, expose it in the same commit.

        number = highest ever issued + 1, by the ledger and by the mark. `files` must hold
        "weights"; the vault itself adds "number", "files" (digests) and "created" to the manifest,
        which must be strict JSON. What `sign` makes of the bytes of manifest.json is placed beside
        it before the row is committed.
        """
        digests = digests_of(files)
        if "weights" not in files or "manifest" in files:
            raise VaultError(
                f"expected the file 'weights' and none named 'manifest', not {list(files)}."
            )
        if taken := {"number", "files", "created"} & manifest.keys():
            raise VaultError(
                f"the vault writes {sorted(taken)} into the manifest itself: leave them out."
            )
        with self._writing():
            number = self.next_number()
            created = time.time()
            full = {**manifest, "number": number, "files": digests, "created": created}
            text = to_json(full, "manifest", allow_nan=False, indent=2)
            sealed = self.sealing.shut_generation(number, files, digests)
            contents = {f"{name}.safetensors": data for name, data in sealed.items()}
            contents["manifest.json"] = text.encode()
            if sign:
                contents[SIGNATURE] = sign(contents["manifest.json"])
            place(self.path, number, contents)
            row = (number, to_json(digests, "files"), text, created)
            self._ledger.execute("INSERT INTO generations VALUES (?, ?, ?, ?)", row)
            if activate:
                self._expose(number)
        self._advance()
        return GenerationRecord(number, digests, json.loads(text), created)

    def next_number(self) -> int:
        """Return the number that the next generation gets: higher than any before, kept or not."""
        return 1 + max(self.last_number(), self._mark.issued)

    def activate(self, number: int) -> None:
        """Append a generation to the exposure log; the live one again changes nothing.

        Raises:
            VaultError: the number is unknown, or lower than the live one (a replay).
        """
        with self._writing():
            self.generation(number)
            self._expose(number)
        self._advance()

    def retire_old(self, keep: int, needed: int) -> int:
        """Give up weights and attacks of all but the newest `keep` generations; 0: of none.

        Rows, manifests and signatures stay. The last `needed` exposed generations, the live one
        among them, keep theirs all the same, and so does whatever was never exposed since.

        Returns:
            The highest number that is retired.
        """
        kept = self.exposures(max(1, needed))
        through = min(self.last_number() - keep, kept[0] - 1 if kept else 0)
        if through > self.retired:
            with self._writing():
                self._ledger.execute(
                    "CREATE TABLE IF NOT EXISTS retired (through INTEGER, removed INTEGER)"
                )
                self._ledger.execute("INSERT INTO retired VALUES (?, 0)", (through,))
        self._remove_retired()
        return self.retired

    def _remove_retired(self) -> None:
        """Remove the files of what is retired, also where a kill came between."""
        through = self.retired
        done = self._rows("SELECT max(removed) FROM retired")[0][0] or 0 if through else 0
        if isinstance(done, int) and done < through and (through < (self.live() or 0)):
            numbers = [number for number in self.numbers(done) if number <= through]
            with explained(self.path, "written"):
                remove_weights(self.path, numbers, ("manifest.json", SIGNATURE))
            with self._writing():
                self._ledger.execute("DELETE FROM retired")
                self._ledger.execute("INSERT INTO retired VALUES (?, ?)", (through, through))

    def reject(self, info: Mapping[str, Any]) -> None:
        """Log one rejected candidate with its reasons."""
        row = (to_json(info, "info"), time.time())
        with self._writing():
            self._ledger.execute("INSERT INTO rejections (info, created) VALUES (?, ?)", row)

    def _expose(self, number: int) -> None:
        live = self.live()
        if live is not None and number < live:
            raise VaultError(
                f"replay refused: generation {number} is older than the live one, {live}."
                " Numbers only rise; activate a newer one."
            )
        row = (number, time.time())
        self._ledger.execute("INSERT OR IGNORE INTO exposures VALUES (?, ?)", row)

    def _advance(self) -> None:
        """Mark what was reached, once it is on the medium whole: a copy of the ledger has it."""
        with self._mutex:
            self._checkpoint()
            self._mark.advance(self)

    def _checkpoint(self) -> None:
        """Bring the ledger's own file up to date: in a copy its log may be missing."""
        with suppress(sqlite3.Error):
            self._ledger.execute("PRAGMA busy_timeout = 200")  # ms; else the next commit does it
            self._ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with suppress(sqlite3.Error):
            self._ledger.execute("PRAGMA busy_timeout = 10000")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Commit once at the end of the block; on any failure roll back and remove its files."""
        if self._lock is None or self._lock.closed:
            raise VaultError(f"{self.path} is not open for writing: use Vault.open(.., write=True)")
        with self._mutex, explained(self.path, "written"):
            try:
                self._ledger.execute("BEGIN IMMEDIATE")
                self._mark.check(self)
                yield
                self._ledger.execute("COMMIT")
            except BaseException:
                if self._ledger.in_transaction:
                    with suppress(sqlite3.Error):
                        self._ledger.execute("ROLLBACK")
                self._try_tidy()  # asks the ledger: Ctrl-C just after COMMIT must not lose files
                raise

    def _tidy(self) -> None:
        """Make the folders; remove temporary files and whatever of ours has no row."""
        damaged: list[str] = []  # what lies there of a row that cannot be read is no leftover
        entries = self._entries("", damaged=damaged.append)
        known = {entry_file(self.path, entry, name) for entry in entries for name in entry.files}
        known |= {generation_folder(self.path, number) for number in self.numbers()}
        tidy(self.path, known, self._mark.issued, entries=not damaged)
        self._remove_retired()
        self._checkpoint()  # a log that a full disk stopped gives its room back

    def _try_tidy(self) -> None:
        with suppress(OSError, VaultError), self._mutex:  # else the next writer does it
            self._tidy()
