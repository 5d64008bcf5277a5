"""Whose pages may ask: the Host and Origin headers, which only browsers tell honestly.

A page of another site can make its visitor's browser ask a service on loopback: by a name that it
points here (DNS rebinding; it could then read the answers), or blindly, as a cross-site form does.
"""

from __future__ import annotations

from collections.abc import Iterable

from g2d.service.http.options import Options
from g2d.service.http.protocol import RequestError

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

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise a `RequestError`, 421 or 403, unless Host is ours and Origin the same."""
        host = origin = b""
        for key, value in headers:
            if key == b"host":
                host = value
            elif key == b"origin":
                origin = value
        if host not in self._known:
            self._look(host)
        if origin:
            self._same(origin, host)

    def _look(self, host: bytes) -> None:
        if not self._any and _name(host.decode("latin-1")) not in self._own:
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
