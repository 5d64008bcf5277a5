"""One record of an audit log: a line of canonical JSON that holds the digest of the line before.

A head is the sequence number and the digest of a record: whoever knows one knows all before it.
Files are in `writer`, checking in `verify`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from g2d.errors import SettingsError
from g2d.vault.keys import SigningKey, VerifyKey

GENESIS = "0" * 64
"""What stands for the record before the first."""
INTERVAL = 256
"""The most records between two checkpoints, and so the most that are unsigned."""
LONGEST = 1 << 17
"""Bytes of a line; facts of an event that would make it longer are left out, by their digest."""

OPEN, CHECKPOINT, CLOSE = "audit.open", "audit.checkpoint", "audit.close"
GAP, HELD, RECOVERED, SUSPECT = "audit.gap", "audit.held_back", "audit.recovered", "audit.suspect"

_CONTEXT = b"g2d audit checkpoint 1\0"  # a signature of anything else is worth nothing here
_MOST_FACTS = 1 << 16
_DEEPEST = 64  # levels of nesting in a record
_FIELDS = ("facts", "name", "prev", "seq", "time")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNED = frozenset({"log", "sequence", "head", "key", "signature"})


@dataclass(frozen=True)
class Head:
    """Where a chain has come to: the number of a record and the SHA-256 of its line."""

    sequence: int
    digest: str

    @classmethod
    def read(cls, text: str) -> Self:
        """Read `SEQUENCE:DIGEST`.

        Raises:
            SettingsError: it is something else.
        """
        number, _, digest = text.strip().partition(":")
        if not (number.isdecimal() and number.isascii() and _DIGEST.fullmatch(digest)):
            raise SettingsError(
                f"{text[:100]!r} is no head of an audit log: expected SEQUENCE:SHA256, as"
                " `g2d audit show` prints it"
            )
        return cls(int(number), digest)

    def __str__(self) -> str:
        return f"{self.sequence}:{self.digest}"


START = Head(0, GENESIS)


@dataclass(frozen=True)
class Record:
    """What one line says; `time` is UTC to the nanosecond, `previous` the digest before it."""

    sequence: int
    time: str
    previous: str
    name: str
    facts: Mapping[str, Any]

    def line(self) -> bytes:
        """The record as it is written and hashed, without the end of the line."""
        named = (self.facts, self.name, self.previous, self.sequence, self.time)
        return canonical(dict(zip(_FIELDS, named, strict=True)))

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line.

        Raises:
            ValueError: it is not the canonical form of a record.
        """
        if len(line) > LONGEST:
            raise ValueError("it is longer than any record")
        try:
            said = json.loads(line)
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        if not isinstance(said, dict) or tuple(sorted(said)) != _FIELDS:
            raise ValueError("it is no record")
        facts, name, previous, sequence, at = (said[field] for field in _FIELDS)
        right = (
            isinstance(facts, dict) and isinstance(name, str) and type(sequence) is int
            and isinstance(previous, str) and _DIGEST.fullmatch(previous)
            and isinstance(at, str) and _TIME.fullmatch(at)
        )  # fmt: skip
        if not right or sequence < 1:
            raise ValueError("its fields are not those of a record")
        found = cls(sequence, at, previous, name, facts)
        if found.line() != line:  # as a name given twice would be, which readers take differently
            raise ValueError("it is not in canonical form")
        return found

    def head(self, line: bytes | None = None) -> Head:
        """The head that this record makes; `line`: its bytes, if they are known."""
        return Head(self.sequence, digest(line if line is not None else self.line()))


def digest(line: bytes) -> str:
    """SHA-256 of a line, without its end, in hexadecimal."""
    return hashlib.sha256(line).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON in one form alone: sorted names, no spaces, ASCII; what is not finite becomes null."""
    text = json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deep")
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each, depth + 1) for each in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of numpy's
        return _plain(value.item(), depth + 1)
    return str(value)


def bounded(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Facts as they are, or, where they are too many, their digest and their size."""
    try:
        data = canonical(facts)
    except Exception as error:  # whatever an event holds must not end the thread that writes
        return {"left_out": type(error).__name__}
    if len(data) <= _MOST_FACTS:
        return dict(json.loads(data))
    return {"left_out": "too long", "bytes": len(data), "sha256": digest(data)}


def stamp(nanoseconds: int | None = None) -> str:
    """A moment (nanoseconds since 1970; None: now) in UTC, as records have it."""
    at = time.time_ns() if nanoseconds is None else nanoseconds
    seconds, rest = divmod(at, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


# --- checkpoints ---------------------------------------------------------------------------------


def sign_checkpoint(key: SigningKey, log: str, head: Head, at: str) -> dict[str, Any]:
    """The facts of a checkpoint: log, head and time, under the audit key's signature (Ed25519)."""
    said = {"log": log, "sequence": head.sequence, "head": head.digest}
    signature = key.sign(canonical({**said, "time": at}), _CONTEXT)
    return {**said, "key": key.fingerprint, "signature": signature.hex()}


def checkpoint_is_signed(record: Record, key: VerifyKey) -> bool:
    """Whether a trusted key has signed a checkpoint's log, head and time."""
    facts = record.facts
    if facts.keys() != _SIGNED:
        return False
    said = {name: facts[name] for name in ("log", "sequence", "head")}
    try:
        signature = bytes.fromhex(facts["signature"])
    except (TypeError, ValueError):
        return False
    if signature.hex() != facts["signature"]:  # one form alone
        return False
    signer = key.signer(canonical({**said, "time": record.time}), signature, _CONTEXT)
    return signer is not None and signer == facts["key"]
