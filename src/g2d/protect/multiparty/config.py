"""`parties.toml`: who the parties are, by which certificate each is known. Standard library alone.

    protocol = "aby3"                # or "cheetah", with two parties
    dealers = ["dealer.pem"]         # who may share weights
    clients = ["clients.pem"]        # who may ask; files hold one certificate or many

    [[parties]]                      # rank 0, then rank 1, ..
    address = "a.example:7700"
    certificate = "party0.pem"       # listen = "0.0.0.0:7700" where that is another address

Certificates are pinned one by one: there is no authority that could issue itself a rank. A file may
hold the next certificate, too, while one is being renewed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from g2d.core.files import read_text
from g2d.errors import DAMAGE, nearest
from g2d.protect.multiparty.errors import MultipartyError

PARTIES = {"aby3": 3, "cheetah": 2}
"""Protocols, and how many parties each has."""
WIDTH = {"aby3": 16, "cheetah": 8}
"""Bytes of one value's share."""
DEALER, CLIENT, PARTY = "dealer", "client", "party"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_KNOWN = {"protocol", "dealers", "clients", "parties", "limits"}


class Who(NamedTuple):
    """Whose a certificate is. `rank` is that of a party; -1: none."""

    role: str
    rank: int = -1

    def __str__(self) -> str:
        return f"party {self.rank}" if self.role == PARTY else f"a {self.role}"


@dataclass(frozen=True)
class Limits:
    """What a party takes.

    Attributes:
        batch: inputs of one request. per_minute: inputs of one client's certificate, a minute.
        arrive: seconds within which all parties must have a request's shares. run: seconds that one
            request may compute. silence: seconds without a word after which a party is gone.
        bounds: whether parties refuse inputs out of the program's range, found on shares.
    """

    batch: int = 256
    per_minute: int = 6000
    arrive: float = 4.0
    run: float = 120.0
    silence: float = 4.0
    bounds: bool = True


@dataclass(frozen=True)
class Place:
    """A party: where others reach it, where it listens, its certificates (DER)."""

    address: tuple[str, int]
    listen: tuple[str, int]
    certificates: tuple[bytes, ...]
    file: Path


@dataclass(frozen=True)
class Config:
    """What every party, client and dealer of one set-up has alike."""

    protocol: str
    parties: tuple[Place, ...]
    dealers: tuple[bytes, ...]
    clients: tuple[bytes, ...]
    limits: Limits = Limits()
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict, compare=False)

    @classmethod
    def read(cls, path: Path | str) -> Config:
        """Read the file; certificates are named relative to its folder.

        Raises:
            MultipartyError: it cannot be read, or a line is not what it should be.
        """
        path = Path(path)
        try:
            told = tomllib.loads(read_text(path, follow=True))
        except (OSError, ValueError) as error:
            raise MultipartyError(f"cannot read {path}: {error}") from error
        try:
            return cls._made(path.absolute().parent, told)
        except DAMAGE as error:
            raise MultipartyError(f"{path}: {error}") from error
        except MultipartyError as error:
            raise MultipartyError(f"{path}: {error}") from error

    @classmethod
    def _made(cls, folder: Path, told: dict[str, Any]) -> Config:
        for name in told.keys() - _KNOWN:
            raise MultipartyError(f"there is no setting {name!r}.{nearest(name, _KNOWN)}")
        protocol = told.get("protocol")
        if protocol not in PARTIES:
            raise MultipartyError(f"protocol is {protocol!r}, expected {' or '.join(PARTIES)}")
        parties = tuple(_place(folder, table) for table in told.get("parties", ()))
        if len(parties) != PARTIES[protocol]:
            raise MultipartyError(
                f"{protocol} has {PARTIES[protocol]} parties, and {len(parties)} are named"
            )
        roles = ("dealers", "clients")
        files = {name: tuple(folder / file for file in told.get(name, ())) for name in roles}
        dealers, clients = (
            tuple(der for file in files[name] for der in certificates(file)) for name in files
        )
        if not dealers:
            raise MultipartyError("dealers names no certificate: nobody could share weights")
        made = cls(protocol, parties, dealers, clients, _limits(told.get("limits", {})), files)
        made.roles  # noqa: B018 (says what is named twice)
        return made

    @property
    def ranks(self) -> range:
        """The parties' ranks."""
        return range(len(self.parties))

    @cached_property
    def roles(self) -> Mapping[str, Who]:
        """Whose each certificate is, by `fingerprint`.

        Raises:
            MultipartyError: two have the same: one key would stand for two who must not be one.
        """
        found: dict[str, Who] = {}
        named = [(Who(PARTY, rank), place.certificates) for rank, place in enumerate(self.parties)]
        for who, owned in [*named, (Who(DEALER), self.dealers), (Who(CLIENT), self.clients)]:
            for der in owned:
                if found.setdefault(fingerprint(der), who) != who:
                    raise MultipartyError(
                        f"{who} and {found[fingerprint(der)]} have one certificate: each needs a"
                        " key of its own"
                    )
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what parties must have alike; certificates may be renewed one by one."""
        told = [self.protocol, self.limits.batch, self.limits.bounds]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate, in hexadecimal."""
    return hashlib.sha256(der).hexdigest()


def certificates(file: Path) -> tuple[bytes, ...]:
    """The certificates in a PEM file, as DER.

    Raises:
        MultipartyError: it cannot be read, or holds none.
    """
    try:
        found = _PEM.findall(read_text(file, follow=True))
        made = tuple(base64.b64decode("".join(text.split()), validate=True) for text in found)
    except (OSError, ValueError) as error:
        raise MultipartyError(f"cannot read the certificates in {file}: {error}") from error
    if not made:
        raise MultipartyError(f"{file} holds no certificate (PEM)")
    return made


def as_pem(owned: Sequence[bytes]) -> str:
    """Certificates as text."""
    return "".join(ssl.DER_cert_to_PEM_cert(der) for der in owned)


def _place(folder: Path, table: Any) -> Place:
    for name in table.keys() - {"address", "listen", "certificate"}:
        raise MultipartyError(f"a party has no setting {name!r}")
    address = host_port(table["address"])
    file = folder / table["certificate"]
    listen = host_port(table["listen"]) if "listen" in table else address
    return Place(address, listen, certificates(file), file)


def host_port(text: str) -> tuple[str, int]:
    """HOST:PORT as a pair; an IPv6 address stands in brackets.

    Raises:
        MultipartyError: it is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port[:6]) < 1 << 16:
        raise MultipartyError(f"{text!r} is no address: write HOST:PORT")
    return host.strip("[]"), int(port)


def _limits(table: Any) -> Limits:
    known, found = Limits.__dataclass_fields__, dict[str, Any]()
    for name, given in table.items():
        if name not in known:
            raise MultipartyError(f"[limits] has no setting {name!r}.{nearest(name, known)}")
        kind: Any = type(known[name].default)
        value: Any = float(given) if kind is float and type(given) is int else given
        if type(value) is not kind or (kind is not bool and not 0 < value <= 1e6):
            raise MultipartyError(f"[limits] {name} is {value!r}, expected a {kind.__name__}")
        found[name] = value
    return Limits(**found)
