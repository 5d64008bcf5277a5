"""Who asks, and the one table that says which role an address needs. Verifies nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from g2d.service.http.limits import client_of
from g2d.service.http.types import Scope

INFER, OBSERVE, OPERATE, LABEL = "infer", "observe", "operate", "label"
ROLES = (INFER, OBSERVE, OPERATE, LABEL)

CALLER = "g2d.caller"
"""Key of a request's scope: the `Caller` that `gate.Access` found."""
LINK = "g2d.link"
"""Key of a request's scope: the `links.Link` it came on; absent where nobody asks for one."""

_NEEDS: tuple[tuple[str, frozenset[str]], ...] = (
    # What an address needs: any one of the roles; the first line that fits counts.
    (r"/v2/health/(live|ready)/?", frozenset()),
    (r"/v2/models/[^/]+(/versions/[^/]+)?/infer/?", frozenset({INFER})),
    (r"/v2(/.*)?", frozenset({INFER, OBSERVE})),
    (r"/encrypted/(infer|keys(/.*)?)/?", frozenset({INFER})),
    (r"/encrypted(/.*)?", frozenset({INFER, OBSERVE})),
    (r"/admin(/.*)?", frozenset({OPERATE})),
    (r"/feedback/?", frozenset({LABEL, OPERATE})),
    (r"/alarms/?", frozenset({OBSERVE, OPERATE})),  # OPERATE: where nobody is asked, by the token
    (r".*", frozenset({OBSERVE})),
)
_NEEDED = tuple((re.compile(text, re.DOTALL), roles) for text, roles in _NEEDS)


def needed(path: str) -> frozenset[str]:
    """Return the roles of which an address needs one; empty: it is free, whoever asks."""
    return _remembered(path) if len(path) < _SHORT else _look_up(path)


def _look_up(path: str) -> frozenset[str]:
    return next(roles for pattern, roles in _NEEDED if pattern.fullmatch(path))


_SHORT = 256  # characters of an address that may be remembered, so that those are no memory
_remembered = lru_cache(1024)(_look_up)


class Caller(NamedTuple):
    """Who sent a request.

    Attributes:
        name: as "spiffe://domain/path", "dns:name", "email:address", "cn:name", "jwt:subject" or
            "operator"; empty: nobody said, and the address stands for the client. how:
            "certificate", "jwt", "token" or "". address: where the request came from.
    """

    name: str
    roles: frozenset[str]
    how: str
    address: str

    @property
    def client(self) -> str:
        """What counts as one client: the identity, else what `client_of` makes of the address."""
        return self.name or client_of(self.address)

    def facts(self) -> Mapping[str, str | None]:
        """Return what an event says of the caller beside the address."""
        return {"who": self.name or None, "how": self.how or None}


def address_of(scope: Scope) -> str:
    """Return a request's address; "" for a connection that has none."""
    client = scope.get("client")
    return client[0] if client else ""
