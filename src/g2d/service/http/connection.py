"""One client's connection: bounds time, size and number of what uvicorn would wait for or keep.

A client that sends a byte of its head now and then, or none at all, would hold its connection for
ever (slow loris), and so would one that never reads its answers; uvicorn queues every request that
comes in one read. The body's time and size are bounded in `app`.
"""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from g2d.service.access.identity import LINK
from g2d.service.access.links import Link

if TYPE_CHECKING:
    from g2d.service.access.gate import Access

_MOST = 65_536  # bytes of a head: proxies send at most 8 to 16 KiB
_AHEAD = 16  # requests that may wait behind the one that is answered
_END = b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_LATE = b"HTTP/1.1 408 Request Timeout" + _END
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large" + _END
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1" + _END


class Connection(HttpToolsProtocol):
    """uvicorn's connection, closed if a head or a reader is late, or if too much is asked."""

    patience = 10.0
    """Seconds for a head to arrive, from its connection or its first byte on; and seconds that
    answers may wait for a client to read."""

    access: Access | None = None
    """Told of each connection, so that requests say who is at its other end; None: nobody is."""

    _link: Link | None = None
    _timer: TimerHandle | None = None
    _unread: TimerHandle | None = None
    _bytes, _in_body = 0, False
    _running: Any = None  # the request that is answered; `cycle` is the last one that came

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin to wait for the first head; refuse the connection if there are too many."""
        super().connection_made(transport)  # type: ignore[arg-type]  # as uvicorn's own differs
        if self.limit_concurrency and len(self.connections) >= self.limit_concurrency:
            self.connections.discard(self)  # uvicorn would refuse those that are there already
            self._end(_FULL)
        else:
            if self.access is not None:
                self._link = self.access.link(Link(transport, self.shutdown))
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and tell the request that is answered: uvicorn tells the last."""
        self._forget()
        self.resume_writing()
        super().connection_lost(exc)
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        self._running = None
        self.pipeline.clear()
        if self._link is not None and self.access is not None:
            self.access.unlink(self._link)

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

    def on_message_begin(self) -> None:
        """A request begins: its scope says on which connection."""
        super().on_message_begin()
        if self._link is not None:
            self.scope[LINK] = self._link  # type: ignore[literal-required]  # as ASGI allows

    def on_headers_complete(self) -> None:
        """The head is here: from now on the request's own time runs."""
        if self.transport.is_closing():  # what came in the same read as one request too many
            return
        self._forget()
        self._in_body = True
        super().on_headers_complete()
        if len(self.pipeline) > _AHEAD:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """What the last answer leaves unread must not hold the connection."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()

    def pause_writing(self) -> None:
        """The client does not keep up: from now on its time runs."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose client does not read cannot be closed in order."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        self._in_body = False
        super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _await_reader(self) -> None:
        if self._unread is None and self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self.patience, self.transport.abort)

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
            self._await_reader()


def within(seconds: float, access: Access | None = None) -> type[Connection]:
    """Return the class of connections whose heads have to arrive within `seconds`."""
    return type("Connection", (Connection,), {"patience": seconds, "access": access})
