"""Events: what logs, listeners and `/status` are told of each, byte for byte, and back again."""

from __future__ import annotations

import io
import json

import pytest

from g2d.rotation.events import (
    Accepted,
    Alarm,
    Committed,
    Event,
    Failed,
    OlderCopy,
    Paused,
    Refused,
    Resumed,
    Spare,
    Swap,
)
from g2d.service.http.event_log import EventLog
from g2d.service.http.events import (
    AccessChanged,
    Admin,
    Broken,
    Configured,
    Crowded,
    Denied,
    Fault,
    HeldOff,
    Hurried,
    KeysTaken,
    Rejected,
    Released,
    ReplicaJoined,
    RolledOut,
    Serving,
    Signed,
    Started,
    Stopped,
    Stopping,
    WrongToken,
)
from g2d.service.http.log import Log, to_json
from g2d.service.http.metrics import Metrics

GATE = {"gate": "class", "passed": False, "value": None, "limit": 0.5, "reason": "r"}
TOLD = [
    (Spare(2, {"make": 1.5, "load": 0.5}), b'{"generation":2,"seconds":{"make":1.5,"load":0.5}}'),
    (Committed(2), b'{"generation":2}'),
    (
        Swap(2, 1, ("demand", "queries"), 0.5),
        b'{"generation":2,"before":1,"reasons":["demand","queries"],"seconds":0.5}',
    ),
    (
        Refused(reason="digest", text="t", live=1, retry=2.0),
        b'{"reason":"digest","text":"t","live":1,"retry":2.0}',
    ),
    (
        Refused(generation=4, reason="unreadable", text="t"),
        b'{"generation":4,"reason":"unreadable","text":"t"}',
    ),
    (Failed("none made", "t", 1, 2.0), b'{"reason":"none made","text":"t","live":1,"retry":2.0}'),
    (Alarm("drift", "t"), b'{"kind":"drift","text":"t"}'),
    (Paused(), b"{}"),
    (Resumed(), b"{}"),
    (Rejected(3, (GATE,)), b'{"generation":3,"gates":[' + to_json(GATE) + b"]}"),
    (Hurried("t"), b'{"text":"t"}'),
    (Admin("c", "/admin/rotate"), b'{"client":"c","call":"/admin/rotate"}'),
    (Released("10.0.0.1", "jwt:a"), b'{"client":"10.0.0.1","who":"jwt:a"}'),
    (WrongToken("c", "/events"), b'{"client":"c","call":"/events"}'),
    (Broken("t"), b'{"text":"t"}'),
    (Stopping(1), b'{"live":1}'),
    (ReplicaJoined("r", 1), b'{"replica":"r","generation":1}'),
    (RolledOut(2, 3, 0.5), b'{"generation":2,"replicas":3,"seconds":0.5}'),
    (Signed(2, "sha256:ab"), b'{"generation":2,"signer":"sha256:ab"}'),
    (
        Configured("ab", {"every": 1.0}, "/v", "1", True),
        b'{"digest":"ab","options":{"every":1.0},"vault":"/v","version":"1","admin":true,"key":[]}',
    ),
    (Started(2, "a", 7), b'{"generation":2,"address":"a","pid":7}'),
    (
        Serving("sticky", "label", (1, 2)),
        b'{"policy":"sticky","answers":"label","live":[1,2]}',
    ),
    (Stopped(2), b'{"generation":2}'),
    (Fault("x", "uvicorn"), b'{"text":"x","logger":"uvicorn"}'),
    (Accepted("t"), b'{"text":"t"}'),
    (OlderCopy("t"), b'{"text":"t"}'),
    (
        Denied("c", "/status", "role", "t", "jwt:a", "jwt"),
        b'{"client":"c","call":"/status","reason":"role","text":"t","who":"jwt:a","how":"jwt"}',
    ),
    (AccessChanged(("--jwks",)), b'{"flags":["--jwks"]}'),
    (Crowded(9, 2, 1), b'{"open":9,"gave_way":2,"refused":1}'),
    (HeldOff("c", 2.0), b'{"client":"c","seconds":2.0}'),
    (
        KeysTaken("c", 9, "jwt:a", "jwt"),
        b'{"client":"c","bytes":9,"who":"jwt:a","how":"jwt"}',
    ),
]
NAMES = [
    "spare", "committed", "swap", "refused", "refused", "failed", "alarm", "paused", "resumed",
    "rejected", "hurried", "admin", "released", "wrong_token", "broken", "stopping", "replica",
    "rolled out", "signed", "configuration", "start", "serving", "stop", "server", "accepted",
    "older copy", "denied", "access_changed", "crowded", "held_off", "keys taken",
]  # fmt: skip


def test_every_event_has_the_name_and_the_facts_that_its_readers_know():
    assert [event.name for event, _ in TOLD] == NAMES
    for event, wire in TOLD:
        assert to_json(event.facts()) == wire
        assert type(event).of(json.loads(wire)) == event
    kinds = {kind for kind in Event.__subclasses__() if kind.__module__.startswith("g2d")}
    assert kinds == {type(event) for event, _ in TOLD}


@pytest.mark.parametrize("facts", [{}, {"kind": "drift"}, {"kind": "a", "text": "b", "more": 1}])
def test_facts_of_another_event_are_no_alarm(facts):
    with pytest.raises(TypeError):
        Alarm.of(facts)


def test_an_event_from_elsewhere_keeps_its_time():
    log = io.StringIO()
    metrics = Metrics(lambda: {"generation": 1, "age": 0.0, "paused": False})
    event_log = EventLog(metrics, Log(log), dict)
    event_log.tell(Alarm("replica", "late"), at=12.5)
    (alarm,) = event_log.snapshot()["alarms"]
    assert alarm == {"time": 12.5, "kind": "replica", "text": "late"}
    (line,) = map(json.loads, log.getvalue().splitlines())
    assert list(line) == ["at", "level", "event", "time", "kind", "text"]
