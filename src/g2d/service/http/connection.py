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
from g2d.service.http.places import Place

if TYPE_CHECKING:
    from g2d.service.access.gate import Access

_MOST = 65_536  # bytes of a head: proxies send at most 8 to 16 KiB
_AHEAD = 16  # requests that may wait behind the one that is answered
_END = b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_LATE = b"HTTP/1.1 408 Request Timeout" + _END
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large" + _END
FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1" + _END


class Connection(HttpToolsProtocol):
    """uvicorn's connection, closed if a head or a reader is late, or if too much is asked."""

    patience = 10.0
    """Seconds for a head to arrive, from its connection or its first byte on; and seconds that
    answers may wait for a client to read."""

    access: Access | None = None
    """Told of each connection, so that requests say who is at its other end; None: nobody is."""

    place: Place
    """Where it sits in the table of connections; whoever makes one sets it."""

    _link: Link | None = None
    _timer: TimerHandle | None = None
    _unread: TimerHandle | None = None
    _in_body, _moved = False, False  # `_moved`: what came last completed a head, or was of a body
    _least, _most = 0, 0  # bytes of an incomplete head, or after a body: at least, and at most
    _running: Any = None  # the request that is answered; `cycle` is the last one that came

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]  # as uvicorn's own differs
        self.place.end = self.transport.abort
        if self.access is not None:
            self._link = self.access.link(Link(transport, self.shutdown))
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and tell the request that is answered: uvicorn tells the last."""
        self.place.leave()
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

    def abandoned(self) -> None:
        """Forget it, if the loop ended it before its door had it and told nobody, as uvloop does.

        A service that drains would wait for it until `--drain` is over.
        """
        if self in self.connections:
            self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what completes no head and is of no body is held against the client."""
        self._moved = False
        self._most += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._least, self._most = (0, len(data)) if self._moved else (
            self._least + len(data), self._most
        )  # fmt: skip
        answered = self.cycle is None or self.cycle.response_complete
        if self._least > _MOST:
            if answered:
                self._end(_LARGE)
            else:  # behind a request under way, or in the trailers of its body
                self.transport.abort()
        elif answered:
            if self._timer is None:
                self._wait()
        elif self._in_body and self._running is self.cycle:
            self.place.body()

    def on_message_begin(self) -> None:
        """A request begins: its scope says on which connection."""
        super().on_message_begin()
        if self._link is not None:
            self.scope[LINK] = self._link  # type: ignore[literal-required]  # as ASGI allows

    def on_headers_complete(self) -> None:
        """The head is here: from now on the request's own time runs."""
        if self.transport.is_closing():  # what came in the same read as one request too many
            return
        self._moved = True
        if self._most > _MOST and self._size() > _MOST:
            self._end(_LARGE)
            return
        self._forget()
        self._in_body = True
        self.place.busy()
        super().on_headers_complete()
        if len(self.pipeline) > _AHEAD:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """The body goes on."""
        self._moved = True
        if not self.transport.is_closing():
            super().on_body(body)

    def on_response_complete(self) -> None:
        """What the last answer leaves unread must not hold the connection."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()
        elif self._unread is None:
            self._rest()

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
            self._rest()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose client does not read cannot be closed in order."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        self._in_body, self._moved = False, True
        if not self.transport.is_closing():
            if self._running is self.cycle and not self.cycle.response_complete:
                self.place.busy()
            super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _size(self) -> int:
        """Bytes of the head that is complete, spaces around values not counted."""
        line = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n")
        return line + sum(len(name) + len(value) + 4 for name, value in self.headers) + 2

    def _rest(self) -> None:
        """Be idle, unless another request waited behind the one that was answered."""
        if self._running is None or self._running.response_complete:
            self.place.idle()
        else:
            self.place.busy()

    def _await_reader(self) -> None:
        if self._unread is None and self.transport.get_write_buffer_size():
            self.place.unread()
            self._unread = self.loop.call_later(self.patience, self.transport.abort)

    def _wait(self) -> None:
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
