"""The table of connections: who gives way to whom, handshakes counted, rotation's descriptors."""

from __future__ import annotations

import contextlib
import math
import socket
import time

import pytest

from g2d.service.http.places import Places
from service_process import certificate
from sockets import DOCS, LIVE, hear, serving
from stand_ins import wait_for


class Crowd:
    """A table with a clock of its own; `ended` says who had to go, in order."""

    def __init__(self, most: int = 4, share: int = 1000) -> None:
        self.at, self.ended, self.told = 100.0, [], []
        self.places = Places(most, share, lambda *told: self.told.append(told), now=lambda: self.at)

    def seat(self, name: str, client: str = "192.0.2.1"):
        assert self.places.room(client) == 0.0
        place = self.places.take(client)
        place.end = lambda: self.ended.append(name)
        return place


def test_who_never_asked_gives_way_then_the_longest_of_the_crowd_and_the_busy_stay():
    crowd = Crowd(most=6)
    names = ("busy", "idle", "body", "other body", "unread", "silent")
    busy, idle, body, other, unread, _ = (crowd.seat(name) for name in names)
    busy.busy()
    idle.idle()
    body.body()
    unread.unread()
    crowd.at += 0.1
    other.body()
    assert crowd.places.room("x") == pytest.approx(0.4)  # everybody has half a second
    crowd.at += 0.4
    for name in ("silent", "body"):
        assert crowd.places.room("x") == 0.0
        assert crowd.ended[-1] == name
        crowd.seat(f"new {name}").busy()
    idle.busy()
    unread.busy()  # it has read
    assert crowd.places.room("x") == pytest.approx(0.1)  # for the other body
    crowd.at += 0.2
    assert crowd.places.room("x") == 0.0
    crowd.seat("last").busy()
    assert crowd.places.room("x") == math.inf
    assert crowd.ended == ["silent", "body", "other body"]


def test_a_burst_of_the_silent_does_not_cost_who_is_idle():
    crowd = Crowd(most=10)
    crowd.seat("idle").idle()
    crowd.at += 30
    for number in range(9):
        crowd.seat(str(number))
    assert crowd.places.room("x") == pytest.approx(0.5)
    crowd.at += 0.6
    assert crowd.places.room("x") == 0.0
    assert crowd.ended == ["0"]


def test_the_young_do_not_keep_the_door_waiting_where_bodies_fill_the_table():
    crowd = Crowd(most=10)
    for number in range(9):
        crowd.seat(str(number)).body()
    crowd.at += 1
    crowd.seat("young")
    assert crowd.places.room("x") == 0.0
    assert crowd.ended == ["0"]


def test_the_longest_silent_is_the_first_and_the_count_is_told_once_a_second():
    crowd = Crowd(most=100)
    for number in range(100):
        crowd.seat(str(number))
    crowd.at += 1
    for number in range(100, 350):
        crowd.seat(str(number))
        crowd.at += 0.01
    assert crowd.ended == [str(number) for number in range(250)]
    assert sum(gone for _, gone, _ in crowd.told) >= 200
    assert 3 <= len(crowd.told) <= 4
    for place in list(crowd.places.all):
        place.leave()
        place.leave()
    assert (crowd.places.all, crowd.places.clients) == (set(), {})
    assert not any(crowd.places.waiting.values())


def test_one_client_has_its_share_and_loopback_all():
    crowd = Crowd(most=6, share=2)
    crowd.seat("a").busy()
    crowd.seat("b")
    crowd.seat("c")  # of its own, whatever their age
    assert crowd.ended == ["b"]
    crowd.seat("d").busy()
    assert crowd.places.room("192.0.2.1") == math.inf
    assert crowd.places.room("192.0.2.2") == 0.0
    for number in range(4):
        crowd.seat(f"own {number}", "127.0.0.1").busy()
    assert len(crowd.places.all) == 6


def test_a_place_that_gave_way_can_do_nothing_more():
    crowd = Crowd(most=1)
    gone = crowd.seat("gone")
    crowd.at += 1
    crowd.seat("new").busy()
    for act in (gone.idle, gone.busy, gone.body, gone.leave):
        act()
    assert crowd.places.room("x") == math.inf


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("secure", [False, True])
def test_a_crowd_of_the_silent_keeps_nobody_out(secure, loop, tls):
    """More than there are places, of the same address, some within a head: all are counted.

    Thousands for a minute: python -m benchmarks.hostile.silence.
    """
    limit = 24
    own = tls if secure else None
    with serving(limit, 60.0, own, loop=loop) as served, contextlib.ExitStack() as stack:

        def connect():
            return stack.enter_context(served.secure() if secure else served.connect())

        asked = connect()
        asked.sendall(LIVE)
        assert b"200 OK" in hear(asked, b"\r\n\r\n")
        silent = [stack.enter_context(served.connect()) for _ in range(2 * limit)]
        for wire in silent[::2]:
            wire.sendall(b"\x16\x03\x01" if secure else b"GET / HTTP/1.1\r\n")
        for _ in range(3):
            new = connect()
            new.sendall(LIVE)
            assert b"200 OK" in hear(new, b"\r\n\r\n")
            assert served.open <= limit
        asked.sendall(LIVE)  # it was idle, and did not give way
        assert b"200 OK" in hear(asked, b"\r\n\r\n")
        assert {"silent"} <= set(served.ended) <= {"silent", "handshake"}
        assert sum(gone for _, gone, _ in served.told) > 0
    assert served.open == 0


def test_a_handshake_that_does_not_come_is_ended(tls):
    with serving(patience=0.3, tls=tls) as served:
        began = time.monotonic()
        wires = [served.connect() for _ in range(3)]
        wires[1].sendall(b"\x16\x03\x01\x02")
        wires[2].sendall(b"GET / HTTP/1.1\r\n\r\n")  # no TLS at all
        wait_for(lambda: served.open > 0)
        wait_for(lambda: served.open == 0)
        assert time.monotonic() - began < 60
        for wire in wires:
            hear(wire)
            wire.close()
        assert served.ended == ["handshake"] * 3
        assert served.accepted == 0
        with served.secure() as good:
            good.sendall(LIVE)
            assert b"200 OK" in hear(good, b"\r\n\r\n")


def test_who_does_not_read_gives_way_at_last():
    with serving(limit=2, patience=60.0) as served, contextlib.ExitStack() as stack:
        for _ in range(2):
            wire = stack.enter_context(served.connect(buffer=2048))
            wire.sendall(DOCS * 8)
        wait_for(lambda: len(served.places.waiting["unread"]) == 2)
        new = stack.enter_context(served.connect())
        new.sendall(LIVE)
        assert b"200 OK" in hear(new, b"\r\n\r\n")
        assert served.ended == ["unread"]


def test_where_all_are_answered_one_more_is_refused():
    with serving(limit=2, patience=60.0) as served, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(served.connect()) for _ in range(2)]
        for wire in streams:
            wire.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"event: status" in hear(wire, b"event: status")
        assert hear(stack.enter_context(served.connect())).startswith(b"HTTP/1.1 503")
        assert served.ended == ["full"]


def test_no_descriptor_left_is_a_pause_and_no_end(monkeypatch):
    with serving() as served:
        plain, failures = socket.socket.accept, [OSError(24, "Too many open files")] * 3

        def accept(self):
            if failures:
                raise failures.pop()
            return plain(self)

        monkeypatch.setattr(socket.socket, "accept", accept)
        for _ in range(2):  # one may be accepted by the wait that had begun before
            with served.connect() as wire:
                wire.sendall(LIVE)
                assert b"200 OK" in hear(wire, b"\r\n\r\n")
        assert not failures
        assert served.ended == ["descriptors"] * 3
