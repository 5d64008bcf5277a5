"""Checks an audit log: the chain, every checkpoint's signature, and heads that are known.

Reads only, line by line. What a signature and a chain alone cannot show is that a log was cut at an
earlier checkpoint: for that it takes a head that was kept elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import fdopen
from pathlib import Path
from typing import IO, Literal

from g2d.core.platforms import open_plain
from g2d.errors import G2DError
from g2d.protect.audit.places import Anchor, segments
from g2d.protect.audit.records import (
    CHECKPOINT,
    GAP,
    INTERVAL,
    LONGEST,
    OPEN,
    RECOVERED,
    START,
    SUSPECT,
    Head,
    Record,
    checkpoint_is_signed,
)
from g2d.vault.keys import VerifyKey

Kind = Literal[
    "unreadable", "record", "sequence", "chain", "signature", "unsigned", "log", "head", "cut",
    "suspect", "gap",
]  # fmt: skip
_SLACK = 16  # records that taking a log up after a crash may add before it signs
_MOST = 100  # problems that are said


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where; `gap` says that the writer itself counted dropped events."""

    kind: Kind
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


@dataclass
class Report:
    """What was found; `unsigned` records stand after the last checkpoint and prove nothing yet."""

    log: str = ""
    head: Head = START
    records: int = 0
    checkpoints: int = 0
    recovered: int = 0
    unsigned: int = 0
    torn: int = 0
    closed: bool = False
    anchored: bool = False
    problems: list[Problem] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; events that the writer counted as dropped are no damage."""
        return all(problem.kind == "gap" for problem in self.problems)


def verify(
    path: Path,
    key: VerifyKey,
    after: Head | None = None,
    known: Iterable[Head] = (),
    anchor: Anchor | None = None,
) -> Report:
    """Read a whole log and say what is wrong with it.

    Args:
        key: whose checkpoints count. after: a head up to which it was verified before: what is
            older may be missing. known: heads that were noted elsewhere, and have to be there.
            anchor: what the writer remembered.

    Raises:
        G2DError: there is no such log.
    """
    if not (files := segments(path)):
        raise G2DError(f"there is no audit log {path}: name its file, or the vault that it is of")
    return _Reader(key, after, [*known], anchor).read(files)


class _Reader:
    def __init__(
        self, key: VerifyKey, after: Head | None, known: Sequence[Head], anchor: Anchor | None
    ) -> None:
        self._key, self._after, self._anchor = key, after, anchor
        self._wanted: dict[int, set[str]] = {}
        for head in (*known, *([after] if after else ()), *([anchor.at] if anchor else ())):
            self._wanted.setdefault(head.sequence, set()).add(head.digest)
        self._found = Report(anchored=anchor is not None)
        self._next = after or START
        self._started = after is None
        self._torn, self._size = hashlib.sha256(), 0
        self._place, self._last = "", ""

    def read(self, files: Sequence[Path]) -> Report:
        found = self._found
        for file in files:
            try:
                for number, line, whole in _lines(file):
                    self._place = f"{file.name}:{number}"
                    self._take(line, whole, file == files[-1])
            except OSError as error:
                self._say("unreadable", str(error.strerror or error), file.name)
        if self._size:
            self._say("record", "it is no record, and no later one says that it was torn")
        self._end()
        return found

    def _take(self, line: bytes, whole: bool, last: bool) -> None:
        if not whole and last:
            self._found.torn = len(line)
            return
        try:
            record = Record.parse(line)
        except ValueError as error:
            self._torn.update(b"\n" + line if self._size else line)
            self._size += len(line) + (self._size > 0)
            self._last = f"{self._place} ({error})"
            return
        self._explained(record)
        if not self._started and self._skip(record, line):
            return
        self._chain(record, line)

    def _explained(self, record: Record) -> None:
        """What is no record has to be said by the next one: the writer found it so."""
        said = tuple(record.facts.get(name) for name in ("bytes", "sha256"))
        tells = record.name == RECOVERED or (record.name == OPEN and said[0] is not None)
        if self._size and not (tells and said == (self._size, self._torn.hexdigest())):
            self._say("record", "it is no record", self._last)
        elif tells and not self._size:
            self._say("record", "it says that a torn line stands before it, and none does")
        self._found.recovered += tells
        self._torn, self._size = hashlib.sha256(), 0

    def _skip(self, record: Record, line: bytes) -> bool:
        """Whether a record is one of those that were verified before."""
        assert self._after is not None
        if record.sequence <= self._after.sequence:
            self._compare(record.head(line))
            return True
        self._wanted.pop(self._after.sequence, None)  # it may have been moved away
        self._started = True
        return False

    def _chain(self, record: Record, line: bytes) -> None:
        found, expected = self._found, self._next
        if record.sequence != expected.sequence + 1:
            text = f"record {expected.sequence + 1} should stand here, and {record.sequence} does"
            self._say("sequence", text)
        elif record.previous != expected.digest:
            self._say("chain", f"record {record.sequence} does not follow the one before it")
        self._next = head = record.head(line)
        found.records, found.head, found.closed = found.records + 1, head, False
        found.unsigned += 1
        self._compare(head)
        if record.name == CHECKPOINT:
            self._checkpoint(record)
        elif found.unsigned == INTERVAL + _SLACK:
            self._say("unsigned", f"no checkpoint follows within {INTERVAL} records")
        if (record.name == OPEN) != (record.sequence == 1):
            self._say("log", "a log begins with audit.open, and there alone")
        elif record.name == OPEN:
            found.log = found.log or str(record.facts.get("log"))
        if record.name == SUSPECT:
            self._say("suspect", str(record.facts.get("text")))
        elif record.name == GAP:
            self._say("gap", f"{record.facts.get('dropped')} events were dropped before it")

    def _checkpoint(self, record: Record) -> None:
        found, facts = self._found, record.facts
        found.checkpoints, found.unsigned = found.checkpoints + 1, 0
        if not checkpoint_is_signed(record, self._key):
            self._say("signature", f"no trusted key ({self._key.fingerprint}) signed checkpoint"
                      f" {record.sequence}")  # fmt: skip
        elif (facts["sequence"], facts["head"]) != (record.sequence - 1, record.previous):
            self._say("signature", f"checkpoint {record.sequence} was signed of other records")
        log = str(facts.get("log"))
        if found.log and log != found.log:
            self._say("log", f"checkpoint {record.sequence} is of another log, {log}")
        found.log = found.log or log

    def _compare(self, head: Head) -> None:
        wanted = self._wanted.pop(head.sequence, None)
        if wanted is not None and wanted != {head.digest}:
            self._say("head", f"record {head.sequence} is not the one that is known")

    def _end(self) -> None:
        found, anchor = self._found, self._anchor
        for sequence in sorted(self._wanted):
            text = f"it has no record {sequence}, which is known to have been written"
            self._say("cut", text, "end")
        if anchor and found.log and anchor.log != found.log:
            self._say("log", f"it is log {found.log}, and {anchor.log} was written here", "end")
        if anchor and anchor.closed and found.head != anchor.at and not self._wanted:
            self._say("head", f"it was closed with record {anchor.sequence}, and goes on", "end")
        if anchor and anchor.closed and found.torn:
            self._say("record", "it was closed, and its last line is torn", "end")
        if not found.records and self._started:
            self._say("record", "it has no record", "end")

    def _say(self, kind: Kind, text: str, where: str = "") -> None:
        if len(self._found.problems) < _MOST:
            self._found.problems.append(Problem(kind, where or self._place, text))


def read_records(path: Path) -> Iterator[Record]:
    """Read the records of a log, oldest first, unverified; what is none is passed over.

    Raises:
        G2DError: there is no such log, or it cannot be read.
    """
    if not (files := segments(path)):
        raise G2DError(f"there is no audit log {path}: name its file, or the vault that it is of")
    for file in files:
        try:
            for _, line, _ in _lines(file):
                try:
                    yield Record.parse(line)
                except ValueError:
                    continue  # `verify` says what is wrong with it
        except OSError as error:
            raise G2DError(f"cannot read the audit log {file}: {error.strerror}") from error


def _lines(file: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Number, bytes and whether it is whole, of each line; one that is too long comes in parts."""
    with fdopen(open_plain(file), "rb") as opened:
        yield from _split(opened)


def _split(opened: IO[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    number = 0
    while line := opened.readline(LONGEST + 1):
        number += 1
        whole = line.endswith(b"\n")
        yield number, line[:-1] if whole else line, whole or len(line) > LONGEST
