"""Everything in a vault's folder, read once and checked against its ledger; nothing is changed.

A vault may be in use meanwhile. Nothing of it is trusted: no link is followed, no read is without
a bound, no code that its settings name is imported. Knows no torch: what a network has to be like
is what the vault's own base is like.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from g2d.core.platforms import LOCK_FALLBACK
from g2d.errors import G2DError, VaultError
from g2d.settings import Settings
from g2d.vault import committed, tensors
from g2d.vault.basins import GROWING
from g2d.vault.keys import VerifyKey, read_public
from g2d.vault.ledger import (
    COMMITMENT,
    LEDGER,
    LEDGERS,
    LOCK,
    SETTINGS,
    SUBFOLDERS,
    NewerFormatError,
    sha256,
)
from g2d.vault.ledger_rows import Rows, gap_text, read_rows
from g2d.vault.mark import FileMark
from g2d.vault.plain import MOST_TEXT, is_folder, is_open_to_sqlite, read_plain, read_text
from g2d.vault.records import (
    RENEWED,
    SIGNATURE,
    TOO_DEEP,
    Entry,
    GenerationRecord,
    checked_entry,
    checked_generation,
    checked_moment,
    checked_object,
    entry_file,
    generation_folder,
)
from g2d.vault.rollback import judge
from g2d.vault.signing import verify_generation
from g2d.vault.sources import ORDER, STAGED
from g2d.vault.spendings import SPENDINGS, THRESHOLD
from g2d.vault.spendings import read as read_spendings
from g2d.vault.vault import Vault

__all__ = ["Problem", "verify"]

Kind = Literal[
    "ledger", "settings", "row", "number", "exposure", "absent", "unreadable", "digest", "tensors",
    "architecture", "manifest", "signature", "commitment", "privacy", "unknown",
]  # fmt: skip

_MOST = 1 << 32  # bytes of a file
_LOOKS = 3  # times that a vault is looked at whose entries are being replaced
_SIDES = {LOCK, LOCK + LOCK_FALLBACK, SETTINGS, COMMITMENT, ORDER, SPENDINGS, THRESHOLD, *LEDGERS}
_COMPANIONS = {"redteam", STAGED, GROWING}  # what commands keep beside, with digests of their own
_SIGNATURE_SIZE = 64


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `where` is a path in the vault, `what` says it in words."""

    kind: Kind
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(
    path: Path | str, key: VerifyKey | Path | str | None = None, *, patience: float = 2.0
) -> list[Problem]:
    """Read every file and row of a vault and return what is wrong; an empty list: it is sound.

    Args:
        key: public keys, or their file: every generation has to be signed by one of them.
        patience: seconds after which a file that the ledger does not know counts as unknown, and
            not as one that a writer is about to commit.

    Raises:
        VaultError: there is no vault at `path`, or it is of a newer format: upgrade g2d.
        KeyFileError: the key cannot be used.
    """
    path = Path(path).absolute()
    trusted = read_public(key) if isinstance(key, Path | str) else key
    if not os.path.lexists(path / LEDGER):
        Vault.open(path).close()  # says what is there in its place
    if odd := [name for name in LEDGERS if not is_open_to_sqlite(path / name)]:
        return [Problem("ledger", name, "it is a link, or no plain file") for name in odd]
    found: list[Problem] = []
    for _ in range(_LOOKS):
        try:
            look = _Look(path, read_rows(path), trusted)
            before, found = look.files(), look.all(patience)
            gone = before - _Look(path, read_rows(path), None).files() if found else None
        except NewerFormatError:
            raise
        except VaultError as error:
            return [Problem("ledger", LEDGER, _inside(path, str(error)))]
        if not gone:
            break
        found = [problem for problem in found if problem.where not in gone]
    return found


class _Look:
    """One pass over a vault, by the rows that the ledger had when it began."""

    def __init__(self, path: Path, rows: Rows, key: VerifyKey | None) -> None:
        self.path, self.rows, self.key = path, rows, key
        self.texts: dict[Any, str] = {row[0]: row[2] for row in rows.generations}
        self.found: list[Problem] = []
        self.known: set[Path] = set()
        self.reference: Mapping[str, tensors.Shape] | None = None
        self.infinite: Mapping[str, bytes] = {}
        self.closed = {path / name for name in SUBFOLDERS if not self._is_folder(path / name)}

    def all(self, patience: float) -> list[Problem]:
        """Check everything."""
        for said in self.rows.damage:
            self._tell("ledger", LEDGER, said)
        self._settings()
        for entry in sorted(self._entries(), key=lambda entry: entry.kind != "base"):
            for name, digest in entry.files.items():
                self._file(entry_file(self.path, entry, name), digest, self._compared(entry, name))
        generations = list(self._generations())
        sound = [made for made in generations if self._generation(made)]
        self._numbers({made.number for made in generations})
        self._commitment({made.number: made.manifest for made in generations})
        self._rejections()
        if self.key:
            self._signatures(sound, self.key)
        self._strangers(patience)
        return list(dict.fromkeys(self.found))

    def files(self) -> set[str]:
        """Where the entries' files lie: that of an entry replaced meanwhile is not missed."""
        return {
            str(entry_file(self.path, entry, name).relative_to(self.path))
            for entry in self._entries()
            for name in entry.files
        }

    # --- the ledger ------------------------------------------------------------------------------

    def _settings(self) -> None:
        path = self.path / SETTINGS
        with self._told(path, "settings"):
            Settings.from_vault(read_text(path), SETTINGS)

    def _entries(self) -> Iterator[Entry]:
        for row in self.rows.entries:
            with self._told_row(f"{row[0]} {row[1]}"):
                entry = checked_entry(*row)
                self.known.update(entry_file(self.path, entry, name) for name in entry.files)
                yield entry

    def _generations(self) -> Iterator[GenerationRecord]:
        for row in self.rows.generations:
            if type(row[0]) is int:  # its folder is known, whatever else the row says
                self.known.add(generation_folder(self.path, row[0]))
            with self._told_row(f"generation {row[0]}"):
                yield checked_generation(*row)

    def _rejections(self) -> None:
        for index, info, created in self.rows.rejections:
            with self._told_row(f"rejection {index}"):
                checked_object(info), checked_moment(created)

    def _numbers(self, sound: set[int]) -> None:
        """Numbers rise by one, what has been exposed is there, and nothing is behind the mark."""
        there = {row[0] for row in self.rows.generations}
        for first, last in self.rows.gaps(sound):
            self._tell("number", LEDGER, gap_text(first, last))
        for number, created in self.rows.exposures:
            if number not in there:
                self._tell("exposure", LEDGER, f"generation {number} was live and has no row")
            with self._told_row(f"exposure {number}"):
                checked_moment(created)
        if self.rows.retired >= self.rows.live > 0:
            self._tell("number", LEDGER, f"generation {self.rows.live} is live and retired")
        with Vault.open(self.path) as vault, self._told(self.path / LEDGER, "number"):
            with self._told(self.path / SPENDINGS, "privacy"):
                read_spendings(vault)
            for number in sorted({row["source"] for row in vault.sources()}):
                if number and not all(vault.entry(kind, source=number) for kind in RENEWED):
                    self._tell("row", LEDGER, f"it lacks entries of renewal {number}")
            marks = FileMark(self.path, vault.identity)
            if marks.read() is not None:  # where there is none, nothing is known
                judge(vault, marks)

    def _commitment(self, manifests: Mapping[int, Mapping[str, Any]]) -> None:
        """The watermark's commitment, if there is one, is the vault's own."""
        path = self.path / COMMITMENT
        data = self._bytes(path, MOST_TEXT) if os.path.lexists(path) else b""
        if data is None:
            return
        with Vault.open(self.path) as vault, self._told(path, "commitment"):
            for said in committed.faults(data, vault.identity, manifests):
                self._tell("commitment", path, said)

    # --- files -----------------------------------------------------------------------------------

    def _compared(self, entry: Entry, name: str) -> bool:
        return name == "weights" and entry.kind in ("base", "early", "member")

    def _file(self, path: Path, digest: str, compared: bool) -> None:
        """Check one file of tensors. `compared`: it is a network of the base's architecture."""
        data = self._bytes(path, _MOST)
        if data is None:
            return
        if sha256(data) != digest:
            self._tell("digest", path, "it is corrupt: its SHA-256 differs from the ledger's")
            return
        try:
            content = tensors.parse(data)
        except ValueError as error:
            self._tell("tensors", path, str(error))
            return
        if compared and self.reference is None:
            self.infinite = tensors.infinities(content)  # the base's own: a mask, say
        if wrong := tensors.faults(content, self.infinite):
            self._tell("tensors", path, _first(wrong))
        if compared:
            shapes = tensors.shapes_of(content)
            self.reference = self.reference or shapes
            if wrong := tensors.misfits(self.reference, shapes):
                self._tell(
                    "architecture", path, f"its architecture is not the base's: {_first(wrong)}"
                )

    def _generation(self, made: GenerationRecord) -> bool:
        """Check a generation's files; whether nothing is wrong with them by the ledger alone."""
        folder, before = generation_folder(self.path, made.number), len(self.found)
        if folder.parent in self.closed or not self._is_folder(folder, needed=True):
            return False
        for name, digest in made.files.items():
            path = folder / f"{name}.safetensors"
            self.known.add(path)
            if made.number <= self.rows.retired and not os.path.lexists(path):
                continue  # its weights and attacks were given up
            self._file(folder / f"{name}.safetensors", digest, name == "weights")
        self._manifest(folder / "manifest.json", made)
        signature = folder / SIGNATURE
        if os.path.lexists(signature):
            self.known.add(signature)
            data = self._bytes(signature, MOST_TEXT)
            if data is not None and len(data) != _SIGNATURE_SIZE:
                self._tell("signature", signature, f"it is not {_SIGNATURE_SIZE} bytes long")
        return len(self.found) == before

    def _signatures(self, generations: Sequence[GenerationRecord], key: VerifyKey) -> None:
        """Check what was signed: the settings' names for what may be loaded yet, if they are read.

        The past was signed for the settings of its own time, which may have changed since.
        """
        live = self.rows.live
        told = any(problem.where == SETTINGS for problem in self.found)
        with Vault.open(self.path) as vault:
            for made in generations:
                folder = generation_folder(self.path, made.number)
                with self._told(folder, "signature"):
                    verify_generation(
                        vault,
                        made.number,
                        key,
                        after=made.number - 1,
                        now=made.created,  # one that has expired is no damage
                        files=() if made.number > self.rows.retired else ("none",),
                        settings=made.number >= live and not told,
                    )

    def _manifest(self, path: Path, made: GenerationRecord) -> None:
        """What manifest.json says is what the ledger says, and both make sense."""
        self.known.add(path)
        data, about = self._bytes(path, MOST_TEXT), made.manifest
        if data is not None and data != self.texts[made.number].encode():
            self._tell("digest", path, "it is corrupt: it differs from the ledger's row")
        own = {"number": made.number, "files": made.files, "created": made.created}
        for name, value in own.items():
            if about.get(name) != value:
                self._tell("manifest", path, f"its {name!r} differs from the ledger's row")
        exposed, gates = about.get("exposed", []), about.get("gates", [])
        if not isinstance(exposed, list) or not all(
            type(n) is int and n < made.number and n in self.texts for n in exposed
        ):
            self._tell("manifest", path, "its 'exposed' are not numbers of earlier generations")
        if not isinstance(gates, list) or not all(_passed(gate) for gate in gates):
            self._tell("manifest", path, "its 'gates' have not all been passed")

    def _bytes(self, path: Path, most: int) -> bytes | None:
        """Read a plain file; None if it cannot be, which has been told then."""
        if path.parent in self.closed:
            return None
        with self._told(path, "unreadable"):
            return read_plain(path, most)
        return None

    # --- what the ledger does not know -----------------------------------------------------------

    def _strangers(self, patience: float) -> None:
        """Tell of files without a row, unless a writer commits or removes them in time."""
        strangers, until = self._unknown(), time.monotonic() + patience
        while strangers:
            late = time.monotonic() >= until
            self.rows = read_rows(self.path)
            for _ in (*self._entries(), *self._generations()):
                pass  # what they name is known from now on
            strangers &= self._unknown()
            if late:
                break
            time.sleep(0.05)
        for path in sorted(strangers):
            self._tell("unknown", path, "the ledger has no row for it: move it out of the vault")

    def _unknown(self) -> set[Path]:
        folders = {self.path / name for name in SUBFOLDERS} - self.closed
        made = {path for path in self.known if path.parent.name == "generations"}
        inside = [self.path, *(path for path in folders | made if is_folder(path))]
        names = _SIDES | set(SUBFOLDERS) | _COMPANIONS
        known = self.known | {self.path / name for name in names}
        found: set[Path] = set()
        for folder in inside:
            with self._told(folder, "unreadable"):
                found.update(folder / item.name for item in os.scandir(folder))
        return found - known

    # --- telling ---------------------------------------------------------------------------------

    def _is_folder(self, path: Path, needed: bool = False) -> bool:
        """Whether a folder can be looked into; what lies behind a link is not the vault's."""
        there = os.path.lexists(path)
        if there and not is_folder(path):
            self._tell("unreadable", path, "it is a link or a file, expected a folder")
        elif needed and not there:
            self._tell("absent", path, "the folder is missing")
        return is_folder(path) or not (there or needed)

    def _tell(self, kind: Kind, where: Path | str, what: str) -> None:
        name = str(where.relative_to(self.path)) if isinstance(where, Path) else where
        self.found.append(Problem(kind, name, _inside(self.path, what)))

    @contextmanager
    def _told(self, path: Path, kind: Kind) -> Iterator[None]:
        """Turn what the block raises into a problem of a file."""
        try:
            yield
        except FileNotFoundError:
            self._tell("absent", path, "it is missing")
        except OSError as error:
            link = error.errno == errno.ELOOP
            self._tell("unreadable", path, "it is a link" if link else str(error.strerror))
        except (G2DError, UnicodeDecodeError) as error:
            self._tell(kind, path, str(error))
        except RecursionError:
            self._tell(kind, path, TOO_DEEP)

    @contextmanager
    def _told_row(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError) as error:
            self._tell("row", LEDGER, f"the row of {name} is damaged ({error})")
        except RecursionError:
            self._tell("row", LEDGER, f"the row of {name} is damaged ({TOO_DEEP})")


def _passed(gate: Any) -> bool:
    return isinstance(gate, dict) and gate.get("passed", True) is True


def _first(reasons: Sequence[str]) -> str:
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more


def _inside(path: Path, text: str) -> str:
    """A message in one line, paths in it relative to the vault."""
    return " ".join(text.replace(f"{path}/", "").replace(str(path), "the vault").split())
