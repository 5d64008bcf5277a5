"""Rows of the ledger as plain data: entries, generations, and where each one's files lie."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from g2d.errors import DAMAGE, VaultError, nearest
from g2d.vault.ledger import sha256

SIGNATURE = "manifest.sig"
"""File beside manifest.json that holds its signature, if the generation was signed."""

PLANTED = "planted"
"""The kind of the entry that holds an audit's canaries, and the key that manifests say it under:
what has either is for an audit of privacy, and is not served."""

FOLDERS = {"base": "", "generator": "", "teacher": "", "early": "early", "member": "population",
           "records": "", PLANTED: ""}  # fmt: skip
"""The folder of each kind of entry; a kind without one has a single entry, of index 0."""

RENEWAL = 1_000_000
"""Entries of renewal k (`sources`) have the indices from k times this on; a vault's first ones
begin at 0."""

RENEWED = frozenset({"base", "generator", "member", "records"})
"""Kinds that each renewal has its own of."""

FILE_NAME = re.compile(r"(?!v\d+$)[a-z][a-z0-9_]*")
"""What a file of an entry or of a generation may be called."""

OURS = re.compile(
    rf"({'|'.join(kind for kind, folder in FOLDERS.items() if not folder)}|\d{{6,}})"
    r"(\.v\d+)?(\.[a-z][a-z0-9_]*)?\.safetensors"
)
"""The names that files of entries have: what has such a name and no row is a leftover."""

TOO_DEEP = "it is nested too deeply"
"""Why JSON or TOML cannot be read whose brackets would exhaust the reader's stack."""

LARGEST = 1 << 53
"""The highest number that a generation can have; a row with another one is damaged."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A base, early checkpoint, population member or generator: its files' digests and notes."""

    kind: str
    index: int
    files: dict[str, str]
    info: dict[str, Any]
    created: float
    version: int = 1


@dataclass(frozen=True)
class GenerationRecord:
    """An accepted candidate; `manifest` is what manifest.json holds, number and digests too."""

    number: int
    files: dict[str, str]
    manifest: dict[str, Any]
    created: float


def entry_file(root: Path, entry: Entry, name: str) -> Path:
    """Where a file of an entry lies in the vault `root`."""
    folder = FOLDERS[entry.kind]
    stem = f"{entry.index:06d}" if folder else entry.kind
    version = f".v{entry.version}" if entry.version > 1 else ""
    suffix = "" if name == "weights" else f".{name}"
    if not folder and entry.index:  # a renewal's own, beside its members
        folder, stem = FOLDERS["member"], f"{entry.index:06d}"
        suffix = f".{entry.kind}" + ("" if name == "weights" else f"_{name}")
    return root / folder / f"{stem}{version}{suffix}.safetensors"


def may_be(kind: str, index: int) -> bool:
    """Whether an entry of this kind may have this index: a single kind has one of each renewal."""
    if index < 0 or (index >= RENEWAL and kind not in RENEWED):
        return False
    return bool(FOLDERS[kind]) or index % RENEWAL == 0


def generation_folder(root: Path, number: int) -> Path:
    """Where a generation's files lie in the vault `root`."""
    return root / "generations" / f"{number:06d}"


def checked_entry(
    kind: Any, index: Any, version: Any, files: Any, info: Any, created: Any
) -> Entry:
    """Make an entry of a row whose values may be anything; ValueError: it cannot be one."""
    if kind not in FOLDERS or type(index) is not int or not may_be(kind, index):
        raise ValueError("no such entry can be")
    if type(version) is not int or version < 1:
        raise ValueError("versions are counted from 1")
    return Entry(
        kind,
        index,
        _checked_digests(files),
        checked_object(info, False),
        checked_moment(created),
        version,
    )


def checked_object(text: Any, strict: bool = True) -> dict[str, Any]:
    """Read an object in JSON, NaN and infinity refused if `strict`; ValueError: it is none."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    options: dict[str, Any] = {"parse_constant": refuse} if strict else {}
    try:
        found = json.loads(text, **options) if isinstance(text, str) else None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if not isinstance(found, dict):
        raise ValueError("expected an object in JSON")
    return found


def _checked_digests(text: Any) -> dict[str, str]:
    found = checked_object(text)
    for name, digest in found.items():
        if not FILE_NAME.fullmatch(name) or not _DIGEST.fullmatch(str(digest)):
            raise ValueError("expected SHA-256 digests by the files' names")
    return found


def checked_source(source: Any, info: Any, created: Any) -> dict[str, Any]:
    """What a change of the source was noted with; ValueError: it cannot be one."""
    if type(source) is not int or not 0 <= source < LARGEST // RENEWAL:
        raise ValueError("renewals are counted from 1")
    return {**checked_object(info), "source": source, "created": checked_moment(created)}


def checked_moment(value: Any) -> float:
    """Seconds since 1970; ValueError: it is something else."""
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError("its time is not a number of seconds")
    return value


def checked_generation(number: Any, files: Any, manifest: Any, created: Any) -> GenerationRecord:
    """Make a generation's record of a row; ValueError: it cannot be one."""
    digests = _checked_digests(files)
    if type(number) is not int or not 1 <= number <= LARGEST or "weights" not in digests:
        raise ValueError("a generation has a number from 1 on, and weights")
    return GenerationRecord(number, digests, checked_object(manifest), checked_moment(created))


def sound_rows(
    make: Callable[..., T], rows: Sequence[Sequence[Any]], what: str, damaged: Callable[[str], None]
) -> list[T]:
    """Make something of each row; `damaged` is told of those of which nothing can be made."""
    found = []
    for row in rows:
        try:
            found.append(make(*row))
        except DAMAGE as error:
            name = f"{what} {row[0]}" if type(row[0]) is int else what
            why = TOO_DEEP if isinstance(error, RecursionError) else " ".join(str(error).split())
            damaged(f"the ledger's row of {name} is damaged ({why[:200]})")
    return found


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file; a `VaultError` names a file that cannot be called so."""
    for name in files:
        if not FILE_NAME.fullmatch(name):
            raise VaultError(f"{name!r} cannot name a file: use a-z, 0-9, _ (and not v1, v2, ..).")
    return {name: sha256(data) for name, data in files.items()}


def digest_of(files: Mapping[str, str], name: str, what: str) -> str:
    """The digest of one file of `what`, for messages; a `VaultError` suggests the nearest name."""
    if name not in files:
        raise VaultError(f"{what} has no file {name!r}.{nearest(name, files)}")
    return files[name]


def to_json(value: Mapping[str, Any], what: str, **options: Any) -> str:
    """Write an object as JSON; a `VaultError` says what cannot be written so."""
    try:
        return json.dumps(dict(value), sort_keys=True, **options)
    except (TypeError, ValueError) as error:
        raise VaultError(f"{what} cannot be written as JSON: {error}") from error
