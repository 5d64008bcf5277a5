"""What a vault's ledger says of its sealing: how far it is, and which custodians hold its key.

The record is one row of the ledger, so that it changes with everything else or not at all. A ledger
that has one is of format `SEALED_FORMAT`: a G2D that knows nothing of sealing refuses it, where it
would write plaintext. Nothing that a record says is trusted: a custodian's name in it opens
nothing on this machine by itself (`remembered`). Knows no torch.
"""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from g2d.errors import DAMAGE, SealingError
from g2d.vault.ledger import FORMAT, SEALED_FORMAT

__all__ = ["Former", "Held", "Record", "State", "drop_record", "read_record", "write_record"]

State = Literal["sealing", "sealed", "unsealing", "rekeying"]
"""How far: what is written in "unsealing" is plain, in the others sealed; what is there is sealed
in "sealed", and in "rekeying" under one of two keys, else it may be either."""

_TABLE = "CREATE TABLE IF NOT EXISTS sealing (record TEXT)"
_VAULT, _KEY = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{16}")
_WORD = re.compile(r"[a-z][a-z0-9]*")
_FORMAT = 1


@dataclass(frozen=True)
class Held:
    """The vault's key as one custodian holds it.

    Attributes:
        number: counts up from 1, and none is used twice. kind: of the custodian. name: by which
            whoever added it would know it. added: seconds since 1970.
    """

    number: int
    kind: str
    name: str
    blob: bytes
    added: float


@dataclass(frozen=True)
class Former:
    """The key that a vault had before, for as long as not all is sealed by the new one.

    Attributes:
        key: its name. blob: itself, wrapped by the new one.
    """

    key: str
    blob: bytes


@dataclass(frozen=True)
class Record:
    """How a vault is sealed.

    Attributes:
        state: see `State`. home: identity of the vault that the key was drawn for; another, in
            which a refresh waits, has the same key. key: its name (`envelope.key_name`). held: by
            custodians. last: the highest number of `held` that was ever given. former: while the
            vault is rekeyed.
    """

    state: State
    home: str
    key: str
    held: tuple[Held, ...]
    last: int
    former: Former | None = None

    @property
    def all_sealed(self) -> bool:
        """Whether nothing plain is the vault's own."""
        return self.state in ("sealed", "rekeying")

    @property
    def writes_sealed(self) -> bool:
        """Whether what is written from now on is sealed."""
        return self.state != "unsealing"

    @property
    def context(self) -> bytes:
        """What custodians bind the key to."""
        return f"g2d vault key 1\0{self.home}\0{self.key}".encode()

    def former_context(self, former: str) -> bytes:
        """What a former key of this name is bound to, wrapped by the key."""
        return f"g2d former vault key 1\0{self.home}\0{self.key}\0{former}".encode()

    def with_held(self, kind: str, name: str, blob: bytes, now: float) -> Record:
        """The record with one custodian more."""
        number = self.last + 1
        name = name.partition("?")[0]  # without what is this machine's alone
        one = Held(number, kind, name, blob, now)
        return replace(self, held=(*self.held, one), last=number)


def read_record(rows: list[Any]) -> Record | None:
    """Make a record of the rows of its table; None: there is none.

    Raises:
        SealingError: it is damaged.
    """
    if not rows:
        return None
    try:
        said = json.loads(rows[0][0])
        held = tuple(_held(one) for one in said["custodians"])
        former = _former(said["former"]) if "former" in said else None
        made = Record(said["state"], said["vault"], said["key"], held, said["last"], former)
        right = (
            said["format"] == _FORMAT
            and len(rows) == 1
            and made.state in get_args(State)
            and bool(_VAULT.fullmatch(made.home) and _KEY.fullmatch(made.key))
            and type(made.last) is int
            and (former is not None) == (made.state == "rekeying")
            and len({one.number for one in held}) == len(held)
            and max((one.number for one in held), default=0) <= made.last
        )
        if not right:
            raise ValueError("other values")
    except DAMAGE as error:
        raise SealingError(
            "the ledger's record of how this vault is sealed is damaged: restore the vault from a"
            " backup"
        ) from error
    return made


def write_record(ledger: sqlite3.Connection, record: Record) -> None:
    """Put a record in the place of the one that is there, within a transaction."""
    said: dict[str, object] = {
        "format": _FORMAT, "state": record.state, "vault": record.home, "key": record.key,
        "last": record.last,
        "custodians": [
            {"number": one.number, "kind": one.kind, "name": one.name, "added": one.added,
             "blob": base64.b64encode(one.blob).decode()}
            for one in record.held
        ],
    }  # fmt: skip
    if record.former is not None:
        blob = base64.b64encode(record.former.blob).decode()
        said["former"] = {"key": record.former.key, "blob": blob}
    ledger.execute(_TABLE)
    ledger.execute("DELETE FROM sealing")
    ledger.execute("INSERT INTO sealing VALUES (?)", (json.dumps(said, sort_keys=True),))
    ledger.execute(f"PRAGMA user_version = {SEALED_FORMAT}")


def drop_record(ledger: sqlite3.Connection) -> None:
    """Take the record away: the vault is a plain one again, within a transaction."""
    ledger.execute("DROP TABLE IF EXISTS sealing")
    ledger.execute(f"PRAGMA user_version = {FORMAT}")


def _former(said: Any) -> Former:
    if not _KEY.fullmatch(said["key"]):
        raise ValueError("no key's name")
    return Former(said["key"], base64.b64decode(said["blob"], validate=True))


def _held(said: Any) -> Held:
    kind, name = said["kind"], said["name"]
    if type(said["number"]) is not int or not _WORD.fullmatch(kind) or not isinstance(name, str):
        raise ValueError("no custodian")
    blob = base64.b64decode(said["blob"], validate=True)
    return Held(said["number"], kind, name, blob, float(said["added"]))
