"""A service and its audit log: every event reaches it, whole; its losses are counted."""

from __future__ import annotations

import io
import json
import logging
import queue
from pathlib import Path

import pytest

from audit_logs import check
from g2d.errors import G2DError
from g2d.protect.audit.log import AuditLog
from g2d.protect.audit.places import anchor_file, default_log
from g2d.protect.audit.verify import read_records
from g2d.protect.audit.writer import Writer
from g2d.service.auditing import audited, configured, open_audit
from g2d.service.http.events import Stopped
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from g2d.service.http.server import _UvicornLog
from g2d.vault.keys import SigningKey
from stand_ins import TOKEN, Harness, run, wait_for


@pytest.fixture
def audit(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    path, key = tmp_path / "audit.jsonl", SigningKey.generate()
    opened = AuditLog(Writer(path, key, anchor_file(path)))
    opened.key = key
    yield opened
    opened.close()


def test_who_did_what_is_in_the_log_and_the_log_lines_hold_its_heads(audit):
    harness = Harness(audit=audit)
    admin = {"authorization": f"Bearer {TOKEN}"}

    async def work(client):
        rotated = await client.post("/admin/rotate", headers=admin)
        assert rotated.json() == {"generation": 2}
        assert (await client.post("/admin/pause")).status_code == 401
        alarm = {"kind": "drift", "text": "a monitor /srv/of/mine", "rotate": False}
        assert (await client.post("/admin/alarm", json=alarm, headers=admin)).status_code == 200

    run(harness, work)
    audit.close()
    found = {r.name: r.facts for r in read_records(audit.path)}
    assert found["admin"]["call"] == "/admin/alarm"
    assert found["admin"]["client"]
    assert found["wrong_token"]["call"] == "/admin/pause"
    assert found["swap"]["generation"] == 2
    assert found["swap"]["reasons"] == ["demand"]
    assert found["committed"] == {"generation": 2}
    assert found["alarm"]["text"] == "a monitor /srv/of/mine"  # whole, unlike what /events tells
    report = check(audit.path, audit.key)
    assert (report.problems, report.unsigned) == ([], 0)
    heads = [line["head"] for line in harness.lines() if line["event"] == "audit"]
    assert heads[-1] == str(report.head)


def test_what_the_log_loses_is_a_metric_and_an_alarm(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(Writer(path, SigningKey.generate(), anchor_file(path)), waiting=1)
    monkeypatch.setattr(audit, "_queue", Full())
    harness = Harness(audit=audit)
    harness.tell("alarm", {"kind": "drift", "text": "x"})
    assert b"g2d_audit_dropped_records_total 2.0" in harness.metrics.render()
    told = [alarm["text"] for alarm in harness.event_log.snapshot()["alarms"]]
    assert told == ["the audit log cannot keep up: events are dropped", "x"]


class Full:
    """A queue that takes nothing."""

    def put_nowait(self, _):
        raise queue.Full


def test_the_default_log_is_in_the_state_folder_and_none_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    said = []
    audit = open_audit("", tmp_path / "vault", said.append)
    assert audit.path == default_log(tmp_path / "vault")
    assert str(audit.path).startswith(str(tmp_path / "state" / "audit" / "vault-"))
    audit.close()
    assert open_audit("none", tmp_path / "vault", said.append) is None
    assert said == [f"the audit log is {audit.path}", "no audit log is written"]


def test_a_log_that_cannot_be_written_is_refused_where_it_was_asked_for(tmp_path, monkeypatch):
    state = tmp_path / "state"
    state.write_text("a file, where a folder has to be")
    monkeypatch.setenv("G2D_STATE", str(state))
    said = []
    assert open_audit("", tmp_path / "vault", said.append) is None
    assert "WARNING: no audit log is written" in said[0]
    with pytest.raises(G2DError):
        open_audit(str(tmp_path / "mine.jsonl"), tmp_path / "vault", said.append)


def test_the_configuration_is_told_with_its_digest():
    told = configured(Options(every=60.0), Path("vault"), True, SigningKey.generate().public)
    other = configured(Options(every=61.0), Path("vault"), True, None)
    assert told.options["every"] == 60.0
    assert len(told.digest) == 64
    assert told.digest != other.digest
    assert json.loads(json.dumps(told.facts()))["admin"] is True


def test_a_fault_of_the_server_is_an_event(audit):
    harness = Harness(audit=audit)
    try:
        raise KeyError("a secret value")
    except KeyError as error:
        info = (KeyError, error, error.__traceback__)
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "x", 1, "it failed", (), info)
    _UvicornLog(harness.event_log.tell).emit(record)
    wait_for(lambda: any(r.name == "server" for r in read_records(audit.path)))
    (fault,) = [r.facts for r in read_records(audit.path) if r.name == "server"]
    assert (fault["text"], fault["error"]) == ("it failed", "KeyError")
    assert "secret" not in json.dumps(fault)
    (line,) = [line for line in harness.lines() if line["event"] == "server"]
    assert line["logger"] == "uvicorn.error"


def test_a_clusters_log_stands_beside_its_coordinator_and_keeps_the_times(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    lines, said = io.StringIO(), []
    with audited("", tmp_path / "vault", Log(lines), said.append) as tell:
        tell(Stopped(3))
        tell(Stopped(4), 12.5)  # as the coordinator says when it was
    path = default_log(tmp_path / "vault")
    assert said == [f"the audit log is {path}"]
    told = [record for record in read_records(path) if record.name == "stop"]
    assert [record.facts["generation"] for record in told] == [3, 4]
    assert told[1].time == "1970-01-01T00:00:12.500000000Z"
    assert '"event":"audit"' in lines.getvalue()
    with audited("none", tmp_path / "vault", Log(lines), said.append) as tell:
        tell(Stopped(5))
    assert said[-1] == "no audit log is written"
