"""A service over stand-ins on a thread, with a real socket, our doors and connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import uvicorn

from g2d.service.access.tls import ServerTls
from g2d.service.http.connection import within
from g2d.service.http.options import Options
from g2d.service.http.places import Places
from g2d.service.http.server import Server
from stand_ins import Harness, wait_for

PATIENCE = 0.5  # seconds
DOCS = b"GET /docs HTTP/1.1\r\nhost: localhost\r\n\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Served:
    """The service, its table of connections, and ways to connect."""

    def __init__(
        self, limit: int, patience: float, tls: tuple[str, str] | None, options: Options | None,
        loop: str,
    ) -> None:  # fmt: skip
        self.harness, self.accepted = Harness(options), 0
        self.told: list[tuple[int, int, int]] = []
        self.ended: list[str] = []
        self.places = Places(
            limit, limit, lambda *told: self.told.append(told), self.ended.append
        )  # fmt: skip
        self.config = uvicorn.Config(
            self.harness.service, http=self.counting(within(patience)), loop=loop, ws="none",
            lifespan="on", log_config=None, timeout_graceful_shutdown=1,
            timeout_keep_alive=max(1, int(patience)),
        )  # fmt: skip
        self.tls = tls
        made = ServerTls(Options(tls_cert=tls[0], tls_key=tls[1])) if tls else None
        self.server = Server(self.config, self.places, tls=made)
        self.bound = socket.create_server(("127.0.0.1", 0))
        # What is not read must not vanish in the kernel's buffers.
        self.bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def counting(self, protocol: type) -> type:
        """The same connections; `accepted` counts them, also those that have ended."""
        served = self

        class Counting(protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                served.accepted += 1

        return Counting

    @property
    def open(self) -> int:
        return len(self.places.all)

    @property
    def tasks(self) -> int:
        return len(self.server.server_state.tasks)

    def connect(self, buffer: int = 0) -> socket.socket:
        wire = socket.socket()
        if buffer:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        wire.settimeout(60)
        wire.connect(self.bound.getsockname())
        return wire

    def secure(self) -> ssl.SSLSocket:
        """Connect, with a handshake."""
        context = ssl.create_default_context(cafile=self.tls[0])
        context.check_hostname = False
        return context.wrap_socket(self.connect())


@contextlib.contextmanager
def serving(
    limit: int = 100, patience: float = PATIENCE, tls: tuple[str, str] | None = None,
    options: Options | None = None, loop: str = "uvloop",
) -> Iterator[Served]:  # fmt: skip
    served = Served(limit, patience, tls, options, loop)
    thread = threading.Thread(target=served.server.run, args=([served.bound],))
    thread.start()
    try:
        wait_for(lambda: served.server.started or not thread.is_alive())
        yield served
    finally:
        served.harness.event_log.close()
        served.server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        served.bound.close()


def hear(wire: socket.socket, what: bytes = b"\0", seconds: float = 60.0) -> bytes:
    """Read until `what` or the end."""
    heard, until = b"", time.monotonic() + seconds
    with contextlib.suppress(TimeoutError, ConnectionError):
        while what not in heard and time.monotonic() < until:
            part = wire.recv(65_536)
            if not part:
                break
            heard += part
    return heard
