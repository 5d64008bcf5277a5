"""One client's connection, as far as it says who asks: its certificate, and who asked on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from g2d.service.access.certificates import Peer, peer_of


class Link:
    """A connection that is open.

    Args:
        transport: asyncio's; TLS has been agreed. retire: closes the connection in order, once what
            was asked is answered.

    Attributes:
        names: identities that asked on it, which `quotas` counts. closed: it has ended; a request
            that came on it may still be about to be answered.
    """

    def __init__(self, transport: Any, retire: Callable[[], None]) -> None:
        self._transport, self.retire = transport, retire
        self._peer: Peer | None = None
        self._looked = False
        self.names: set[str] = set()
        self.closed = False

    @property
    def peer(self) -> Peer | None:
        """Who the client's certificate says it is; None: it sent none. Read once."""
        if not self._looked:
            self._looked = True
            self._peer = _peer(self._transport)
        return self._peer


def _peer(transport: Any) -> Peer | None:
    wrapped = transport.get_extra_info("ssl_object")
    found = wrapped.getpeercert(True) if wrapped is not None else None
    if not found:
        return None
    # The context that made this handshake, which may have been replaced since.
    return peer_of(found, getattr(wrapped.context, "trust", ""))
