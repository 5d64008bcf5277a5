"""The audit log as a sink: bounded, never in the way, honest about what it lost."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

import pytest

from audit_logs import EVENTS, check, kinds
from g2d.errors import G2DError
from g2d.protect.audit.log import AuditLog, open_log
from g2d.protect.audit.places import anchor_file, default_log
from g2d.protect.audit.records import bounded
from g2d.protect.audit.verify import read_records
from g2d.protect.audit.writer import Writer
from g2d.rotation.events import Alarm, Event
from g2d.service.http.events import WrongToken
from g2d.vault.keys import SigningKey


@pytest.fixture
def key():
    return SigningKey.generate()


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    return tmp_path / "audit.jsonl"


class Heard:
    """What an audit log tells: alarms, counts, heads."""

    def __init__(self, audit=None):
        self.alarms, self.dropped, self.heads, self.again = [], 0, [], threading.Event()
        self.first = threading.Event()
        self._audit = audit

    def connect(self, audit):
        self._audit = audit
        audit.connect(self._tell, self._count, self.heads.append)

    def _tell(self, event):
        self.alarms.append(event.text)
        self._audit.tell(event)  # as the service does
        (self.again if "again" in event.text else self.first).set()

    def _count(self, count):
        self.dropped += count


class Disk:
    """A disk that takes so many bytes more, and then none until it is freed."""

    def __init__(self, monkeypatch):
        self.left, self.freed, self._write = None, threading.Event(), os.write
        monkeypatch.setattr("g2d.protect.audit.writer.os.write", self.write)
        monkeypatch.setattr("g2d.protect.audit.log._AGAIN", 0.01)

    def write(self, handle, data):
        if self.freed.is_set() or self.left is None:
            return self._write(handle, data)
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        few = data[: self.left]
        self.left -= len(few)
        return self._write(handle, few)


def opened(log, key, heard, **more):
    audit = AuditLog(Writer(log, key, anchor_file(log)), **more)
    heard.connect(audit)
    return audit


def test_events_are_written_in_order_and_signed_at_the_end(log, key):
    heard = Heard()
    audit = opened(log, key, heard)
    for _ in range(300):
        audit.tell(EVENTS[0])
        audit.tell(EVENTS[1], at=12.5)
    audit.close()
    found = check(log, key)
    assert (found.problems, found.unsigned, found.closed) == ([], 0, False)
    names = [r.name for r in read_records(log) if not r.name.startswith("audit.")]
    assert names == ["swap", "alarm"] * 300
    assert {r.time for r in read_records(log) if r.name == "alarm"} == {
        "1970-01-01T00:00:12.500000000Z"
    }
    assert heard.heads[-1] == found.head
    assert (heard.dropped, heard.alarms) == (0, [])


@pytest.mark.parametrize("left", [0, 1, 150, 700])
def test_a_full_disk_alarms_and_nothing_is_lost_while_there_is_room_in_memory(
    log, key, monkeypatch, left
):
    disk, heard = Disk(monkeypatch), Heard()
    audit = opened(log, key, heard)
    disk.left = left
    for number in range(40):
        audit.tell(Alarm("drift", f"{number}"))
    assert heard.first.wait(30)
    disk.freed.set()
    assert heard.again.wait(30)
    audit.close()
    assert "cannot be written: No space left on device" in heard.alarms[0]
    found = check(log, key)
    assert found.problems == []
    told = [r.facts["text"] for r in read_records(log) if r.facts.get("kind") == "drift"]
    assert told == [f"{number}" for number in range(40)]
    assert heard.dropped == 0


def test_a_full_queue_never_blocks_and_is_told_and_counted(log, key, monkeypatch):
    disk, heard = Disk(monkeypatch), Heard()
    audit = opened(log, key, heard, waiting=8)
    disk.left = 0
    audit.tell(EVENTS[0])
    assert heard.first.wait(30)
    for number in range(100):
        audit.tell(Alarm("drift", f"{number}"))  # would hang here
    assert heard.dropped > 80
    disk.freed.set()
    assert heard.again.wait(30)
    audit.close()
    assert any("cannot keep up" in text for text in heard.alarms)
    found = check(log, key)
    assert kinds(found) == ["gap"]
    assert found.sound  # the writer says itself what is missing
    (gap,) = [r for r in read_records(log) if r.name == "audit.gap"]
    assert gap.facts["dropped"] == heard.dropped


def test_what_clients_cause_is_held_back_and_counted(log, key):
    audit = opened(log, key, Heard())
    for _ in range(5000):
        audit.tell(WrongToken("192.0.2.7", "/admin/rotate"))
    audit.close()
    written = [r for r in read_records(log) if r.name == "wrong_token"]
    assert 5 <= len(written) < 500  # five a second
    assert written[0].facts == {"client": "192.0.2.7", "call": "/admin/rotate"}
    held = sum(r.facts["count"] for r in read_records(log) if r.name == "audit.held_back")
    assert held + len(written) == 5000


def test_a_disk_that_stays_full_does_not_hold_up_the_end(log, key, monkeypatch):
    disk, heard = Disk(monkeypatch), Heard()
    audit = opened(log, key, heard)
    disk.left = 10
    audit.tell(EVENTS[0])
    assert heard.first.wait(30)
    audit.close(seconds=20)
    assert not audit._thread.is_alive()
    assert heard.dropped >= 1


def test_two_services_of_one_vault_have_a_log_each(log, tmp_path):
    vault = tmp_path / "vault"
    first, second = open_log(None, vault), open_log(None, vault)
    assert first.path == default_log(vault)
    assert second.path.name == first.path.name.replace(".jsonl", "-2.jsonl")
    first.close()
    second.close()


def test_facts_that_are_too_many_are_told_by_their_digest():
    assert bounded({"text": "x" * 100_000}).keys() == {"left_out", "bytes", "sha256"}
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert bounded({"gates": deep}) == {"left_out": "ValueError"}
    assert bounded({"text": "\ud800", "seconds": float("inf")})["seconds"] is None


class Odd(Event):
    name = "odd"

    def __init__(self, **facts: Any) -> None:
        self._facts = facts

    def facts(self) -> dict[str, Any]:
        return self._facts


def test_no_event_ends_the_log_whatever_it_holds(log, key):
    """A worker that was taken over says what it likes through its pipe."""
    audit, nested = opened(log, key, Heard()), []
    for _ in range(491):
        nested = [nested]
    audit.tell(Odd(gates=nested))
    audit.tell(Odd(text="far away"), at=1e12)
    audit.tell(EVENTS[0])
    audit.close()
    found = [r for r in read_records(log) if not r.name.startswith("audit.")]
    assert [record.name for record in found] == ["odd", "odd", EVENTS[0].name]
    assert found[0].facts == {"left_out": "ValueError"}
    assert found[1].facts["at_ns"] == str(round(1e12 * 1e9))
    assert check(log, key).sound


def test_a_line_that_is_nested_deep_is_found_and_not_stumbled_over(log, key):
    opened(log, key, Heard()).close()
    line = log.read_bytes().splitlines()[0]
    log.write_bytes(
        line.replace(b'"facts":{', b'"facts":{"a":' + b"[" * 600 + b"]" * 600 + b",") + b"\n"
    )
    assert not check(log, key).sound


def test_a_file_of_something_else_is_not_written_into(tmp_path, key):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")  # no line's end
    token.chmod(0o600)
    with pytest.raises((OSError, G2DError), match="does not end as an audit log does"):
        opened(token, key, Heard())
    assert token.read_text() == "0123456789abcdef"
