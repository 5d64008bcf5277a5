"""The door at its end: nobody whom it let in is left behind, whatever the moment."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvicorn
from uvicorn.server import ServerState

from g2d.service.http.connection import Connection, within
from g2d.service.http.door import Door
from g2d.service.http.places import Places
from g2d.service.http.server import _loop


async def _no_app(scope: object, receive: object, send: object) -> None: ...


async def _closed_while_made(ended: list[object]) -> tuple[set[object], int]:
    """Close a door in the moment that uvicorn hears of a connection; what is left, and seats."""
    config = uvicorn.Config(_no_app, http=within(30.0), log_config=None)
    config.load()
    state = ServerState()
    places = Places(8, 8, lambda *_: None, lambda _: None)
    shut: list[Callable[[], None]] = []

    class Closing(within(30.0)):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            shut[0]()

        def connection_lost(self, exc: Exception | None) -> None:
            ended.append(self)
            super().connection_lost(exc)

    def make() -> Connection:
        return Closing(config, state, {})

    with socket.create_server(("127.0.0.1", 0)) as listening:
        door = Door(listening, places, make, 30.0, lambda: None)
        shut.append(door.close)
        door.open()
        client = socket.create_connection(listening.getsockname())
        with client:
            await door.wait_closed()
            for _ in range(20):
                await asyncio.sleep(0)
        return set(state.connections), len(places.all)


@pytest.mark.parametrize("kind", sorted({_loop(), "asyncio"}))
def test_who_is_let_in_as_the_door_closes_is_not_left_behind(kind):
    # A service that drains waits for every connection that it knows: once it was all of --drain.
    if kind == "uvloop":
        import uvloop

        make = uvloop.new_event_loop
    else:
        make = asyncio.new_event_loop
    ended: list[object] = []
    with asyncio.Runner(loop_factory=make) as runner:
        left, seats = runner.run(_closed_while_made(ended))
    assert (left, seats) == (set(), 0)
    assert ended
