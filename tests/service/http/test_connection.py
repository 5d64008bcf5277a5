"""One client's connection over a real socket: what it may queue, leave unread, or hold open."""

from __future__ import annotations

import contextlib
import resource
import time

import pytest

from g2d.service.http.options import Options
from g2d.service.http.server import connections
from sockets import DOCS, LIVE, hear, serving
from stand_ins import INFER, wait_for


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


def head(size: int) -> bytes:
    """A whole request of so many bytes."""
    start, end = LIVE[:-2] + b"x: ", b"\r\n\r\n"
    return start + b"a" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize("cuts", [(), (1000,), (65_535,), (-1,), (-3,), (40_000, 65_000)])
def test_a_head_has_65536_bytes_at_most_however_it_is_cut(cuts):
    with serving(patience=60.0) as served:
        for size, status in (
            (65_536, b"200"),
            (65_537, b"431"),
            (66_000, b"431"),
            (200_000, b"431"),
        ):
            with served.connect() as wire:
                sent, last = head(size), 0
                with contextlib.suppress(ConnectionError):  # closed as soon as it is too long
                    for cut in (*cuts, size):
                        wire.sendall(sent[last:cut])
                        last = cut
                        time.sleep(0.01)  # so that it is read in these pieces
                assert hear(wire, b"\r\n\r\n")[9:12] == status, size


def test_a_head_behind_another_request_is_bounded_too():
    post = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n{{}}   ".encode()
    with serving(patience=60.0) as served:
        for first in (LIVE, post):
            for size, status in ((65_536, b" 200 "), (65_537, b" 431 ")):
                with served.connect() as wire:
                    wire.sendall(first + head(size))
                    wire.sendall(LIVE if status == b" 200 " else b"")
                    assert status in hear(wire, status)
        with served.connect() as wire:  # one that never ends, while an answer never ends
            wire.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"event: status" in hear(wire, b"event: status")
            with contextlib.suppress(ConnectionError):
                wire.sendall(LIVE[:-2] + b"x: " + b"a" * 100_000)
                wait_for(lambda: served.open == 0, 30)
        wait_for(lambda: (served.open, served.tasks) == (0, 0))
        chunked = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        with served.connect() as wire:  # trailers that never end
            with contextlib.suppress(ConnectionError):
                wire.sendall(chunked.encode() + b"2\r\n{}\r\n0\r\nx: " + b"a" * 200_000)
            wait_for(lambda: (served.open, served.tasks) == (0, 0), 30)


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


def test_malformed_requests_of_every_kind_get_no_5xx_and_no_exception(caplog):
    """Many more, against a real service: python -m benchmarks.hostile.fuzz."""
    import argparse
    import asyncio

    from benchmarks.hostile.fuzz import drawn, storm
    from benchmarks.hostile.malformed import KINDS

    with serving(options=Options(timeout=2.0)) as served:
        arguments = argparse.Namespace(connections=40, patience=60.0)
        port = served.bound.getsockname()[1]
        outcomes = asyncio.run(storm(port, drawn(2 * len(KINDS), 3), arguments))
        assert outcomes.total() == 2 * len(KINDS)
        wrong = [key for key in outcomes if " 5" in f" {key[1]}".replace("+", " ")]
        assert not [key for key in [*wrong, *outcomes] if key in wrong or "hang" in key[1]]
        wait_for(lambda: (served.open, served.tasks) == (0, 0))
        assert served.harness.service._bodies.held == 0
    texts = {record.getMessage() for record in caplog.records}
    assert texts <= {"Invalid HTTP request received.", "Unsupported upgrade request."}
