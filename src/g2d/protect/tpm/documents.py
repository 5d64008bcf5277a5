"""Records that travel between hosts as files: JSON in one form alone, so that every bit counts.

What is read is bounded, has exactly the fields of its record, and is byte for byte what writing it
again gives: a changed letter either changes a value, which is verified, or is refused here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

from g2d.core.files import read_plain, write_bytes
from g2d.errors import DAMAGE, SealingError

__all__ = ["MOST", "Document", "decode", "encode", "kind_of", "load", "store"]

MOST = 1 << 16
"""Bytes of the largest file that is read."""

_MOST_DIGITS = 19  # eight bytes hold them


class Document(Protocol):
    """A frozen dataclass whose fields are bytes, int, str, bool or the values of PCRs.

    Attributes:
        KIND: what its file says that it is.
    """

    KIND: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


D = TypeVar("D", bound=Document)


def encode(record: Document) -> bytes:
    """The bytes of a record's file."""
    said: dict[str, object] = {"g2d": record.KIND}
    for field in dataclasses.fields(record):
        said[field.name] = _WRITE[str(field.type)](getattr(record, field.name))
    return json.dumps(said, indent=1, sort_keys=True).encode() + b"\n"


def decode(kind: type[D], data: bytes, what: str) -> D:
    """Read a record of one kind.

    Args:
        what: where it comes from, for messages.

    Raises:
        SealingError: it is too large, of another kind, damaged, or not in the form that `encode`
            writes.
    """
    if len(data) > MOST:
        raise SealingError(f"{what} has {len(data)} bytes, expected {MOST} at most: refused")
    found = kind_of(data)
    if found != kind.KIND:
        raise SealingError(
            f"{what} is {f'a file of kind {found!r}' if found else 'no file of G2D'},"
            f" expected {kind.KIND!r}: give the file that the other side made for this step"
        )
    try:
        said = json.loads(data, parse_constant=_no_number)
        fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
        if said.keys() != {"g2d", *fields}:
            raise ValueError("other fields")
        values = {name: _READ[type_](said[name]) for name, type_ in fields.items()}
        made: D = cast(Any, kind)(**values)
        same = encode(made) == data
    except DAMAGE:
        same = False
    if not same:
        raise SealingError(
            f"{what} is damaged, or was edited: take it once more from where it was made"
        )
    return made


def kind_of(data: bytes) -> str:
    """The kind that a file says it is; "" where it is none of ours."""
    try:
        said = json.loads(data[:MOST], parse_constant=_no_number).get("g2d")
    except DAMAGE:
        return ""
    return said[:40] if isinstance(said, str) else ""


def load(kind: type[D], path: Path) -> D:
    """Read a record from a file; raises `SealingError` as `decode`, and where it cannot be read."""
    return decode(kind, read(path), str(path))


def read(path: Path) -> bytes:
    """Read a file that the user names, of at most `MOST` bytes."""
    try:
        return read_plain(path, MOST, follow=True)
    except OSError as error:
        raise SealingError(f"cannot read {path}: {error.strerror}; check the path") from error


def store(path: Path, record: Document) -> None:
    """Write a record for its owner alone, whole or not at all; raises `G2DError`."""
    write_bytes(path, encode(record), 0o600)


def _no_number(text: str) -> object:
    raise ValueError(text)


def _int(said: object) -> int:
    if type(said) is not int or len(str(said)) > _MOST_DIGITS or said < 0:
        raise ValueError("no number")
    return said


def _str(said: object) -> str:
    if not isinstance(said, str) or not said.isprintable():
        raise ValueError("no text")
    return said


def _bool(said: object) -> bool:
    if not isinstance(said, bool):
        raise ValueError("no truth value")
    return said


def _pcrs(said: object) -> dict[int, bytes]:
    if not isinstance(said, dict):
        raise ValueError("no values of PCRs")
    found = {int(number): bytes.fromhex(value) for number, value in said.items()}
    if any(not 0 <= number <= 23 or len(value) != 32 for number, value in found.items()):
        raise ValueError("no values of PCRs")
    return found


def _plain_pcrs(values: Mapping[int, bytes]) -> dict[str, str]:
    return {f"{number:02}": values[number].hex() for number in sorted(values)}


_WRITE: dict[str, Callable[[Any], object]] = {
    "bytes": bytes.hex, "int": _int, "str": _str, "bool": _bool, "Mapping[int, bytes]": _plain_pcrs,
}  # fmt: skip
_READ: dict[str, Callable[[Any], object]] = {
    "bytes": bytes.fromhex, "int": _int, "str": _str, "bool": _bool, "Mapping[int, bytes]": _pcrs,
}  # fmt: skip
