"""The door: accepts connections, seats them in the table of places, and sees TLS through.

uvicorn's own accept knows of a connection only once its TLS handshake is done: those that never
begin one would escape every limit, and hold descriptors that rotation needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Callable
from typing import Any

from g2d.service.http.connection import FULL, Connection
from g2d.service.http.limits import client_of
from g2d.service.http.places import Place, Places

_AT_ONCE = 8  # connections that are accepted before others are answered again
_GOODBYE = 1.0  # seconds for a client to end TLS in order, as few do
_PAUSE = 0.05  # seconds, if the system has no descriptor or no memory left


class Door:
    """Accepts from one listening socket; takes the place of an `asyncio.Server` for uvicorn.

    Args:
        make: makes uvicorn's protocol. patience: seconds for a handshake.
        context: asked for each connection, so that it may change; None: no TLS.
    """

    def __init__(
        self,
        listening: socket.socket,
        places: Places,
        make: Callable[[], Connection],
        patience: float,
        context: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self._listening, self._places, self._make = listening, places, make
        self._patience, self._context = patience, context
        self._tasks: set[asyncio.Task[None]] = set()
        listening.setblocking(False)

    def open(self) -> None:
        """Begin to accept."""
        self._loop = asyncio.get_running_loop()
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Accept no more, and end the handshakes under way."""
        for task in (self._accepting, *self._tasks):
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until what `close` ended has ended."""
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            for _ in range(_AT_ONCE):
                try:
                    wire, address = await self._loop.sock_accept(self._listening)
                except ConnectionAbortedError:  # it has gone while it waited
                    continue
                except OSError:
                    self._places.refused("descriptors")
                    await asyncio.sleep(_PAUSE)
                    continue
                await self._seat(wire, client_of(address[0]))
            await asyncio.sleep(0)

    async def _seat(self, wire: socket.socket, client: str) -> None:
        try:
            while 0 < (wait := self._places.room(client)) < math.inf:
                await asyncio.sleep(wait)
        except BaseException:  # the service ends
            wire.close()
            raise
        if wait:
            self._places.refused("full")
            self._refuse(wire)
            return
        place = self._places.take(client)
        task = self._loop.create_task(self._connect(wire, place))
        place.end = task.cancel
        self._tasks.add(task)

        def ended(_: object) -> None:
            self._tasks.discard(task)
            if task.cancelled() or task.exception() is not None:
                place.leave()
                wire.close()

        task.add_done_callback(ended)

    def _refuse(self, wire: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._context() is None:
                wire.send(FULL)
        wire.close()

    async def _connect(self, wire: socket.socket, place: Place) -> None:
        known: list[Connection] = []

        def made() -> Connection:
            protocol = self._make()
            protocol.place = place
            known.append(protocol)
            return protocol

        times: dict[str, Any] = {}
        if (context := self._context()) is not None:
            times = {"ssl_handshake_timeout": self._patience,
                     "ssl_shutdown_timeout": min(_GOODBYE, self._patience)}  # fmt: skip
        try:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(made, wire, ssl=context, **times)
        except OSError:  # no handshake, or none in time
            self._places.failed("handshake")
            raise
        except asyncio.CancelledError:  # perhaps in the moment that it was made
            for protocol in known:
                self._loop.call_soon(protocol.abandoned)
            raise
