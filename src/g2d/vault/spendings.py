"""A vault's record of what was spent of people's privacy: lines that are only ever added.

Each line is on the medium before what it speaks of is begun, holds the digest of the line before
it, and is signed where the vault's generations are. How many lines there are, and the digest of
the last one, are in the vault's ledger, too, and in every manifest: a line that was taken off is
missed. A line that a kill has torn was never paid out, for nothing begins before it is whole. What
a spending is, and what it costs, is not decided here. Knows no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2d.core.files import read_plain
from g2d.core.platforms import FileLock, open_flags, sync_folder
from g2d.errors import DAMAGE, PrivacyError
from g2d.vault.ledger import explained

if TYPE_CHECKING:
    from g2d.vault.keys import SigningKey, VerifyKey
    from g2d.vault.reading import VaultReader

__all__ = ["SPENDINGS", "THRESHOLD", "Line", "Spent", "add", "note", "read"]

SPENDINGS = "privacy.jsonl"
"""The file in a vault that holds its spendings, a line of JSON for each."""

THRESHOLD = "privacy-gate.json"
"""The file in a vault that holds the noisy limit of its sparse vector: secret, and never given."""

_CONTEXT = b"g2d privacy ledger 1\0"
_MOST = 1 << 28  # bytes of the file: some half a million spendings
_FIRST = "0" * 64
_PATIENCE = 10.0  # seconds for another process that is adding a line


@dataclass(frozen=True)
class Line:
    """One spending as it was recorded.

    Attributes:
        number: from 1 on. spending: what was spent, as plain values. at: seconds since 1970.
        digest: SHA-256 of the line. signature: of what stands before it; b"": it is not signed.
    """

    number: int
    spending: Mapping[str, Any]
    at: float
    digest: str
    body: bytes
    signature: bytes = b""

    def signed_by(self, key: VerifyKey) -> bool:
        """Whether one of these keys has signed it."""
        return bool(self.signature) and bool(key.signer(self.body, self.signature, _CONTEXT))


@dataclass(frozen=True)
class Spent:
    """All lines, oldest first; `torn`: the end of one that a kill has cut off follows them."""

    lines: tuple[Line, ...] = ()
    torn: bool = False

    @property
    def head(self) -> str:
        """Digest of the last line; zeros where there is none."""
        return self.lines[-1].digest if self.lines else _FIRST

    def stamp(self, through: int | None = None) -> dict[str, Any]:
        """How many lines had been written, and the last one's digest: what is made since says so.

        Args:
            through: up to this line alone; None: all.
        """
        count = len(self.lines) if through is None else through
        return {"spent": count, "head": self.lines[count - 1].digest if count else _FIRST}


def read(vault: VaultReader) -> Spent:
    """Read all spendings of a vault.

    Raises:
        PrivacyError: a line was changed, or lines are missing that the vault's ledger knows.
        VaultError: the file cannot be read.
    """
    path = vault.path / SPENDINGS
    with explained(vault.path, "read"):
        data = read_plain(path, _MOST) if os.path.lexists(path) else b""
    *whole, rest = data.split(b"\n")
    lines: list[Line] = []
    for raw in whole:
        before = lines[-1].digest if lines else _FIRST
        try:
            lines.append(_parsed(raw, len(lines) + 1, before, vault.identity))
        except DAMAGE as error:
            raise PrivacyError(
                f"{path}: line {len(lines) + 1} is not what was recorded ({error}): what was spent"
                " is not known any more, so nothing is spent or claimed. Restore the newest copy"
            ) from error
    count, head = _known(vault)
    if count > len(lines) or (count and lines[count - 1].digest != head):
        raise PrivacyError(
            f"{path} has {len(lines)} lines, and the vault's ledger knows of {count} that end in"
            f" {head[:12]}: spendings were taken off or replaced. Restore the newest copy"
        )
    return Spent(tuple(lines), bool(rest))


def add(
    vault: VaultReader,
    spending: Mapping[str, Any],
    key: SigningKey | None = None,
    allow: Callable[[Spent], None] = lambda _: None,
) -> Line:
    """Record a spending; it is on the medium when this returns, and may be paid out then.

    Args:
        vault: need not be open for writing, for a refresh goes on while a service writes; the
            vault's ledger then learns of the line from the next writer that adds one. key: what
            signs the line; None: the vault is not signed. allow: raises where what was spent before
            leaves nothing for this; nobody adds a line between its look and this one.

    Raises:
        PrivacyError: what was recorded before is not what it was.
        VaultError: the line cannot be written; nothing may be paid out.
    """
    with explained(vault.path, "written"), _opened(vault.path) as file:
        spent = read(vault)
        allow(spent)
        line = _made(vault, spent, spending, key)
        length = sum(len(_whole(one)) + 1 for one in spent.lines)
        file.truncate(length)  # what a kill has left of a line
        file.seek(length)
        left = memoryview(_whole(line) + b"\n")
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    note(vault, line)
    return line


def note(vault: VaultReader, line: Line) -> None:
    """Have the vault's own ledger know of a line, where it is open for writing."""
    if getattr(vault, "_lock", None) is None:
        return
    with vault._writing():  # type: ignore[attr-defined]
        vault._ledger.execute("CREATE TABLE IF NOT EXISTS spent (count INTEGER, head TEXT)")
        vault._ledger.execute("DELETE FROM spent WHERE count < ?", (line.number,))
        vault._ledger.execute(
            "INSERT INTO spent SELECT ?, ? WHERE NOT EXISTS (SELECT * FROM spent)",
            (line.number, line.digest),
        )


@contextmanager
def _opened(folder: Path) -> Iterator[FileIO]:
    """The file, made where there is none, held against whoever else would add a line."""
    path = folder / SPENDINGS
    fresh = not os.path.lexists(path)
    flags = os.O_RDWR | os.O_CREAT | open_flags("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK")
    handle = os.open(path, flags, 0o600)
    with FileIO(handle, "r+b") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            raise OSError(errno.ELOOP, "it is no plain file of its own", str(path))
        if fresh:
            sync_folder(folder)
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                held = FileLock(handle, path)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        try:
            yield file
        finally:
            held.close()


def _made(
    vault: VaultReader, spent: Spent, spending: Mapping[str, Any], key: SigningKey | None
) -> Line:
    number, at = len(spent.lines) + 1, time.time()
    about = {"n": number, "before": spent.head, "vault": vault.identity, "at": at}
    body = _canonical({**about, "spending": dict(spending)})
    signature = b"" if key is None else key.sign(body, _CONTEXT)
    made = Line(number, spending, at, "", body, signature)
    return Line(number, spending, at, _digest(_whole(made)), body, signature)


def _whole(line: Line) -> bytes:
    return line.body + (b" " + line.signature.hex().encode() if line.signature else b"")


def _parsed(raw: bytes, number: int, before: str, identity: str) -> Line:
    """Read a line; ValueError: it is not the one that belongs there."""
    end = raw.rfind(b"}") + 1
    body, after = raw[:end], raw[end:]
    found = json.loads(body)
    if _canonical(found) != body or (after and after[:1] != b" "):
        raise ValueError("it is no line that g2d wrote")
    signature = bytes.fromhex(after[1:].decode("ascii"))
    if found["n"] != number or found["before"] != before:
        raise ValueError("it does not follow the line before it")
    if found["vault"] != identity:
        raise ValueError("it is another vault's")
    if not isinstance(found["spending"], dict):
        raise ValueError("it holds no spending")
    return Line(number, found["spending"], float(found["at"]), _digest(raw), body, signature)


def _known(vault: VaultReader) -> tuple[int, str]:
    """How many lines the vault's ledger knows of, and the digest of the last of these."""
    rows = vault._rows("SELECT count, head FROM spent") if vault._has("spent") else []
    if not rows:
        return 0, _FIRST
    count, head = rows[0]
    if type(count) is not int or not isinstance(head, str):
        raise PrivacyError(
            f"the ledger of {vault.path} does not say how much was spent: restore a backup"
        )
    return count, head


def _canonical(found: Mapping[str, Any]) -> bytes:
    return json.dumps(found, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
