"""Whose pages may ask: the Host and Origin headers, which only browsers tell honestly.

A page of another site can make its visitor's browser ask a service on loopback: by a name that it
points here (DNS rebinding; it could then read the answers), or blindly, as a cross-site form does.
"""

from __future__ import annotations

import ipaddress

from g2d.service.http.headers import Told
from g2d.service.http.options import Options
from g2d.service.http.protocol import RequestError
from g2d.service.http.types import Scope

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_KEPT = 256  # spellings of Host that are remembered as right


class Hosts:
    """Knows by what names the service may be called; any, if others than this machine can."""

    def __init__(self, options: Options) -> None:
        self._allowed = frozenset(name.lower() for name in options.allow_host)
        own = options.host.strip("[]").lower()
        self._own = {*_LOOPBACK, f"[{own}]" if ":" in own else own, *self._allowed}
        self._any = options.exposed and not self._allowed
        self._known = {b""}  # no Host at all: no browser

    def check(self, told: Told, scope: Scope) -> None:
        """Raise a `RequestError`, 421 or 403, unless Host is ours and Origin the same."""
        host, origin = told.get(b"host", b""), told.get(b"origin", b"")
        if host not in self._known:
            self._look(host, scope)
        if origin:
            self._same(origin, host)

    def _look(self, host: bytes, scope: Scope) -> None:
        name = _name(host.decode("latin-1"))
        if not self._any and name not in self._own:
            if _is_address(name, scope.get("server")):
                return
            raise RequestError(
                421, "the Host header does not name this service; if it should, start the service"
                " with --allow-host NAME",
            )  # fmt: skip
        if len(self._known) < _KEPT:
            self._known.add(host)

    def _same(self, origin: bytes, host: bytes) -> None:
        place = origin.decode("latin-1").lower().partition("://")[2]
        if place == host.decode("latin-1").lower() or _name(place) in self._allowed:
            return
        raise RequestError(403, "pages of other sites may not ask (Origin is not this host)")


def _name(host: str) -> str:
    """Strip a port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _is_address(name: str, server: tuple[str, int] | None) -> bool:
    """Whether a name is the very address that was connected to: no other site can have it."""
    try:
        return server is not None and ipaddress.ip_address(name.strip("[]")) == (
            ipaddress.ip_address(server[0].partition("%")[0])
        )
    except ValueError:
        return False
