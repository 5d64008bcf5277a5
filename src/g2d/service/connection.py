"""One client's connection: bounds time and size of a request's head, which uvicorn does not.

A client that sends a byte of its head now and then, or none at all, would hold its connection for
ever (slow loris); the body's time and size are bounded in `app`.
"""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST = 65_536  # bytes of a head: proxies send at most 8 to 16 KiB
_END = b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_LATE = b"HTTP/1.1 408 Request Timeout" + _END
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large" + _END


class Connection(HttpToolsProtocol):
    """uvicorn's connection, closed if a head is not complete in time or grows too large."""

    patience = 10.0
    """Seconds for a head to arrive, from its connection or its first byte on."""

    _timer: TimerHandle | None = None
    _bytes, _in_body = 0, False

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]  # as uvicorn's own differs
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; between answers, what does not complete a head is held against it."""
        super().data_received(data)
        if self.transport.is_closing() or not (self.cycle is None or self.cycle.response_complete):
            return
        if self._timer is None:
            self._wait()
        if not self._in_body:  # the rest of a body that was refused is only read away
            self._bytes += len(data)
            if self._bytes > _MOST:
                self._end(_LARGE)

    def on_headers_complete(self) -> None:
        """The head is here: from now on the request's own time runs."""
        self._forget()
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        self._in_body = False
        super().on_message_complete()

    def _wait(self) -> None:
        self._bytes = 0
        self._timer = self.loop.call_later(self.patience, self._end, _LATE)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, answer: bytes) -> None:
        self._forget()
        self._unset_keepalive_if_required()
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def within(seconds: float) -> type[Connection]:
    """Return the class of connections whose heads have to arrive within `seconds`."""
    return type("Connection", (Connection,), {"patience": seconds})
