"""One client's connection over a real socket: what it may queue, leave unread, or hold open."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from g2d.service.http.connection import within
from g2d.service.http.server import connections
from stand_ins import Harness, wait_for

PATIENCE = 0.5  # seconds
DOCS = b"GET /docs HTTP/1.1\r\nhost: localhost\r\n\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Served:
    """A service over stand-ins on a thread, with our connections."""

    def __init__(self, limit: int = 100, patience: float = PATIENCE) -> None:
        self.harness, self.accepted = Harness(), 0
        self.config = uvicorn.Config(
            self.harness.service, http=self.counting(within(patience)), loop="uvloop", ws="none",
            lifespan="on", log_config=None, limit_concurrency=limit, timeout_graceful_shutdown=1,
            timeout_keep_alive=1,
        )  # fmt: skip
        self.server = uvicorn.Server(self.config)
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
        return len(self.server.server_state.connections)

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


@contextlib.contextmanager
def serving(limit: int = 100, patience: float = PATIENCE) -> Iterator[Served]:
    served = Served(limit, patience)
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


def test_some_requests_may_be_sent_ahead_but_not_a_thousand(caplog):
    with serving() as served:
        with served.connect() as wire:
            wire.sendall(LIVE * 12)
            until = time.monotonic() + 60
            heard = b""
            while heard.count(b"200 OK") < 12:
                assert time.monotonic() < until
                heard += wire.recv(65_536)
        wait_for(lambda: served.open == 0)
        caplog.clear()
        with served.connect() as wire:
            with contextlib.suppress(ConnectionError):
                wire.sendall(DOCS * 1500)
            assert hear(wire).count(b"200 OK") < 5
            wait_for(lambda: (served.open, served.tasks) == (0, 0))
        assert not caplog.records


def test_who_does_not_read_is_ended(caplog):
    with serving() as served:
        wires = []
        for ask in (DOCS * 8, DOCS.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), DOCS):
            wire = served.connect(buffer=2048)
            wire.sendall(ask)
            wires.append(wire)
        wait_for(lambda: served.accepted == 3)
        wait_for(lambda: (served.open, served.tasks) == (0, 0))
        for wire in wires:
            wire.close()
        assert not caplog.records


def test_a_stream_ends_with_its_client_also_if_more_was_asked_behind_it():
    with serving() as served:
        with served.connect() as wire:
            wire.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"event: status" in hear(wire, b"event: status")
            wire.sendall(LIVE)
            wait_for(lambda: served.harness.event_log._listeners)
            time.sleep(0.1)
        wait_for(lambda: (served.open, served.tasks) == (0, 0))
        assert not served.harness.event_log._listeners


def test_one_connection_too_many_is_refused_and_the_others_are_answered():
    with serving(limit=4, patience=60.0) as served:
        first = served.connect()
        first.sendall(LIVE)
        assert b"200 OK" in hear(first, b"\r\n\r\n")
        idle = [served.connect() for _ in range(2)]
        wait_for(lambda: served.open == 3)
        more = served.connect()
        assert hear(more).startswith(b"HTTP/1.1 503")
        first.sendall(LIVE)
        assert b"200 OK" in hear(first, b"\r\n\r\n")
        for wire in (first, more, *idle):
            wire.close()


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "room", "said"),
    [
        (1024, 1 << 20, 2100, 2000, False),
        (65_536, 65_536, 65_536, 2000, False),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, 2000, False),
        (256, 1124, 1124, 1024, True),
        (64, 64, 64, 16, True),
    ],
)
def test_connections_are_as_many_as_there_are_file_descriptors(
    monkeypatch, soft, hard, raised, room, said
):
    limits, told = [soft, hard], []
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(slice(None), new))
    assert connections(lambda event, **facts: told.append((event, facts))) == room
    assert limits == [soft if raised is None else raised, hard]
    assert bool(told) == said
