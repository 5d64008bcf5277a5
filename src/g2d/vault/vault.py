"""The vault: the folder that holds one defended task, and the ledger that says what counts.

Files are opaque bytes named by their SHA-256; what is inside them (safetensors) is decided
elsewhere. Knows no torch and loads no pickle. `ledger.sqlite` is the source of truth: a file
counts only once its row is committed, so a process killed at any moment leaves a vault that opens.
How files and rows reach the disk is in `ledger`.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar, Self

from g2d.core.folders import PRIVATE
from g2d.errors import VaultError
from g2d.vault.ledger import (
    FORMAT,
    LEDGER,
    SETTINGS,
    Frozen,
    check_ledger,
    connect,
    connect_reader,
    explained,
    give_identity,
    is_vacant,
    make_ledger,
    note_mark,
    read_file,
    sha256,
    take_lock,
)
from g2d.vault.mark import FileMark
from g2d.vault.placing import check_private, place, tidy, write
from g2d.vault.plain import read_text
from g2d.vault.records import (
    FOLDERS,
    SIGNATURE,
    Entry,
    GenerationRecord,
    digest_of,
    digests_of,
    entry_file,
    generation_folder,
    to_json,
)
from g2d.vault.rollback import begin_mark, judge, reached

__all__ = ["FORMAT", "SIGNATURE", "Entry", "GenerationRecord", "Vault"]


class Vault:
    """The folder of one defended task: one writer at a time, any number of readers.

    Use `Vault.create` or `Vault.open`, as a context manager or with `close()`. Methods may be
    called from several threads. Every failure is a `VaultError`, and leaves what was accepted.
    What a writer reaches is marked outside the vault (`mark`), and a vault behind its mark is not
    opened for writing.
    """

    remembered: ClassVar[bool] = True
    """Whether what vaults of this class reach is marked."""

    def __init__(self, path: Path, ledger: sqlite3.Connection, lock: FileIO | None) -> None:
        self.path = path
        self._ledger = ledger
        self._lock = lock
        self._mutex = threading.RLock()
        self._marks: FileMark | None = None
        self._issued = 0

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
            path.chmod(PRIVATE)  # it may have been there
            with ExitStack() as undo:
                lock = undo.enter_context(take_lock(path))
                vault = cls(path, make_ledger(path, settings_toml), lock)
                undo.callback(vault.close)
                vault._begin_mark()
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
            if write:
                check_private(path)
            with ExitStack() as undo:
                lock = undo.enter_context(take_lock(path)) if write else None
                ledger = connect(path, "rw") if write else connect_reader(path)
                undo.callback(ledger.close)
                check_ledger(path, ledger)
                vault = cls(path, ledger, lock)
                if write:
                    vault._take_up_mark()
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

    @property
    def settings_text(self) -> str:
        """The text of task.toml, a plain file: what lies behind a link is not the vault's."""
        try:
            with explained(self.path, "read"):
                return read_text(self.path / SETTINGS)
        except UnicodeDecodeError as error:
            raise VaultError(f"{self.path / SETTINGS} is not UTF-8 text: {error}") from error

    @property
    def identity(self) -> str:
        """Random id made with the vault, 32 digits; "" in an old one not yet opened for writing."""
        known = self._rows("SELECT 1 FROM sqlite_master WHERE name = 'identity'")
        rows = self._rows("SELECT id FROM identity") if known else []
        return str(rows[0][0]) if rows else ""

    @property
    def marked(self) -> bool:
        """Whether the ledger says that what it reached has been marked outside the vault."""
        return bool(self._rows("SELECT 1 FROM sqlite_master WHERE name = 'marked'"))

    def manifest_digest(self, number: int) -> str:
        """SHA-256 of a generation's manifest, as the ledger has it; "": it has none."""
        rows = self._rows("SELECT manifest FROM generations WHERE number = ?", number)
        return sha256(rows[0][0].encode()) if rows and isinstance(rows[0][0], str) else ""

    def write_settings(self, text: str) -> None:
        """Replace task.toml."""
        with self._writing():
            write(self.path, self.path / SETTINGS, text.encode())

    def put(
        self, kind: str, index: int, files: Mapping[str, bytes], info: Mapping[str, Any]
    ) -> Entry:
        """Keep one entry, replacing the one of the same kind and index.

        A replacement gets file names of its own (`000012.v2.safetensors`), so no kill can leave
        the ledger pointing at other bytes. `index` of a base or a generator is 0.
        """
        if kind not in FOLDERS:
            raise VaultError(f"unknown kind {kind!r}, expected one of {', '.join(FOLDERS)}.")
        if index < 0 or (index and not FOLDERS[kind]):
            raise VaultError(f"a {kind} has no index {index}: expected 0, or more in a list.")
        digests, notes = digests_of(files), to_json(info, "info")
        with self._writing():
            old = self.entry(kind, index)
            version = old.version + 1 if old else 1
            entry = Entry(kind, index, digests, json.loads(notes), time.time(), version)
            for name, data in files.items():
                write(self.path, entry_file(self.path, entry, name), data)
            row = (kind, index, version, to_json(digests, "files"), notes, entry.created)
            self._ledger.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)
        if old:
            self._try_tidy()
        return entry

    def entries(self, kind: str) -> list[Entry]:
        """Return all entries of a kind, sorted by index."""
        return self._entries("WHERE kind = ? ORDER BY position", kind)

    def entry(self, kind: str, index: int = 0) -> Entry | None:
        """Return one entry, or None."""
        found = self._entries("WHERE kind = ? AND position = ?", kind, index)
        return found[0] if found else None

    def read(self, entry: Entry, name: str = "weights") -> bytes:
        """Return a file's bytes once their SHA-256 equals the entry's digest."""
        what = f"{entry.kind} {entry.index}"
        digest = digest_of(entry.files, name, what)
        try:
            return read_file(
                entry_file(self.path, entry, name), digest, "run `g2d fit` to make it again"
            )
        except VaultError:
            if self.entry(entry.kind, entry.index) != entry:
                raise VaultError(
                    f"{what} was replaced or deleted meanwhile: list it again."
                ) from None
            raise

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

        number = highest ever issued + 1, by the ledger and by the mark. `files` must hold "weights"; the vault itself adds
        "number", "files" (digests) and "created" to the manifest, which must be strict JSON. What
        `sign` makes of the bytes of manifest.json is placed beside it before the row is committed.
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
            contents = {f"{name}.safetensors": data for name, data in files.items()}
            contents["manifest.json"] = text.encode()
            if sign:
                contents[SIGNATURE] = sign(contents["manifest.json"])
            place(self.path, number, contents)
            row = (number, to_json(digests, "files"), text, created)
            self._ledger.execute("INSERT INTO generations VALUES (?, ?, ?, ?)", row)
            if activate:
                self._expose(number)
        self._advance_mark()
        return GenerationRecord(number, digests, json.loads(text), created)

    def generations(self) -> list[GenerationRecord]:
        """Return every accepted generation, sorted by number."""
        rows = self._rows("SELECT * FROM generations ORDER BY number")
        return [
            GenerationRecord(n, json.loads(f), json.loads(m), created) for n, f, m, created in rows
        ]

    def last_number(self) -> int:
        """Return the highest number ever issued, 0 before the first generation."""
        number: int = self._rows("SELECT max(number) FROM generations")[0][0] or 0
        return number

    def next_number(self) -> int:
        """Return the number that the next generation gets: higher than any before, kept or not."""
        return 1 + max(self.last_number(), self._issued)

    def generation(self, number: int) -> GenerationRecord:
        """Return one generation; a number that was never accepted is a `VaultError`."""
        rows = self._rows("SELECT * FROM generations WHERE number = ?", number)
        if not rows:
            last = self._rows("SELECT max(number) FROM generations")[0][0]
            raise VaultError(f"{self.path} has no generation {number}; its last one is {last}.")
        try:
            return GenerationRecord(
                number, json.loads(rows[0][1]), json.loads(rows[0][2]), rows[0][3]
            )
        except (ValueError, TypeError, RecursionError) as error:
            raise VaultError(
                f"{self.path}: the ledger's row of generation {number} is damaged ({error});"
                " restore the vault from a backup, or make the next one with `g2d generate`."
            ) from error

    def read_generation(self, number: int, name: str = "weights") -> bytes:
        """Return a generation's file once its SHA-256 is right; "manifest" is manifest.json."""
        folder = generation_folder(self.path, number)
        advice = "make the next one with `g2d generate`"
        if name == "manifest":
            rows = self._rows("SELECT manifest FROM generations WHERE number = ?", number)
            if rows:
                return read_file(folder / "manifest.json", sha256(rows[0][0].encode()), advice)
        digest = digest_of(self.generation(number).files, name, f"generation {number}")
        return read_file(folder / f"{name}.safetensors", digest, advice)

    def generation_file(self, number: int, name: str = "weights") -> Path:
        """Return where a generation's file lies; what is read from there must be verified."""
        return generation_folder(self.path, number) / f"{name}.safetensors"

    def activate(self, number: int) -> None:
        """Append a generation to the exposure log; the live one again changes nothing.

        Raises:
            VaultError: the number is unknown, or lower than the live one (a replay).
        """
        with self._writing():
            self.generation(number)
            self._expose(number)
        self._advance_mark()

    def live(self) -> int | None:
        """Return the number of the live generation, None before the first."""
        number: int | None = self._rows("SELECT max(number) FROM exposures")[0][0]
        return number

    def begun(self) -> bool:
        """Whether there is anything to lose: trained, generated, or handed in as the base."""
        kinds = ("base", "early", "member", "generator")
        return any(self.entries(kind) for kind in kinds) or self.last_number() > 0

    def exposures(self, last: int = -1) -> list[int]:
        """Return the numbers that have been live in order of first exposure, or the `last` ones."""
        query = "SELECT number FROM exposures ORDER BY number DESC LIMIT ?"
        return [row[0] for row in self._rows(query, last)][::-1]

    def reject(self, info: Mapping[str, Any]) -> None:
        """Log one rejected candidate with its reasons."""
        row = (to_json(info, "info"), time.time())
        with self._writing():
            self._ledger.execute("INSERT INTO rejections (info, created) VALUES (?, ?)", row)

    def rejections(self) -> list[dict[str, Any]]:
        """Return what every `reject` was given, in order."""
        return [json.loads(r[0]) for r in self._rows("SELECT info FROM rejections ORDER BY id")]

    def _expose(self, number: int) -> None:
        live = self.live()
        if live is not None and number < live:
            raise VaultError(
                f"replay refused: generation {number} is older than the live one, {live}."
                " Numbers only rise; activate a newer one."
            )
        row = (number, time.time())
        self._ledger.execute("INSERT OR IGNORE INTO exposures VALUES (?, ?)", row)

    def _begin_mark(self) -> None:
        """Begin anew: a vault that is made where another lay is meant to be there."""
        if self.remembered:
            self._marks = FileMark(self.path, self.identity)
            begin_mark(self, self._marks)

    def _take_up_mark(self) -> None:
        """Refuse a vault that has gone back; else note that there is a mark, and bring it up."""
        if not self.remembered:
            give_identity(self._ledger)
            return
        judge(self, FileMark(self.path, self.identity))  # before anything is changed
        give_identity(self._ledger)
        self._marks = FileMark(self.path, self.identity)
        found = judge(self, self._marks)
        self._issued = found.issued if found else 0
        note_mark(self._ledger, self.last_number() + 1, self._issued)
        self._marks.advance(reached(self))

    def _advance_mark(self) -> None:
        """Mark what was reached, once it is on the medium whole: a copy of the ledger has it."""
        with self._mutex:
            self._checkpoint()
            if self._marks is not None:
                self._marks.advance(reached(self))

    def _checkpoint(self) -> None:
        with suppress(sqlite3.Error):  # a reader is in the way: the next commit does it
            self._ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _entries(self, where: str, *values: object) -> list[Entry]:
        rows = self._rows(f"SELECT * FROM entries {where}", *values)  # noqa: S608 (our own texts)
        return [Entry(k, i, json.loads(f), json.loads(n), t, v) for k, i, v, f, n, t in rows]

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._mutex, explained(self.path, "read"):
            if isinstance(self._ledger, Frozen) and not self._ledger.in_transaction:
                # It never shows changes: take a fresh one (`in_transaction` raises if closed).
                self._ledger.close()
                self._ledger = connect_reader(self.path)
            return self._ledger.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Commit once at the end of the block; on any failure roll back and remove its files."""
        if self._lock is None or self._lock.closed:
            raise VaultError(f"{self.path} is not open for writing: use Vault.open(.., write=True)")
        with self._mutex, explained(self.path, "written"):
            try:
                self._ledger.execute("BEGIN IMMEDIATE")
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
        known = {entry_file(self.path, e, name) for e in self._entries("") for name in e.files}
        known |= {
            generation_folder(self.path, n) for (n,) in self._rows("SELECT number FROM generations")
        }
        tidy(self.path, known, self._issued)
        self._checkpoint()  # a log that a full disk stopped gives its room back

    def _try_tidy(self) -> None:
        with suppress(OSError, VaultError), self._mutex:  # else the next writer does it
            self._tidy()
