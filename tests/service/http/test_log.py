"""Log lines: a reader that stalls, clients that cause floods, texts that are no UTF-8."""

from __future__ import annotations

import io
import json
import os
import sys
import time

from g2d.service.http.log import Log


def test_a_reader_that_stalls_stops_nothing(monkeypatch):
    """A pipe that nobody reads: lines wait, then are dropped and counted, and all goes on."""
    monkeypatch.setattr("g2d.service.http.log._WAITING", 50)
    reads, writes = os.pipe()
    with os.fdopen(reads) as pipe, os.fdopen(writes, "w") as out:
        monkeypatch.setattr(sys, "stderr", out)
        log = Log()
        began = time.monotonic()
        for number in range(3000):
            log("swap", generation=number, text="x" * 200)
        assert time.monotonic() - began < 60
        lines = iter(pipe.readline, "")
        dropped = next(json.loads(line) for line in lines if '"dropped"' in line)
        assert dropped["dropped"] > 0
        assert log._lines is not None
        while not log._lines.empty():
            pipe.readline()
        log.close()
        monkeypatch.undo()


def test_what_waits_is_written_at_the_end(capsys):
    log = Log()
    for number in range(200):
        log("swap", generation=number)
    log.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["generation"] for line in lines] == list(range(200))


def test_lines_that_clients_cause_are_few_and_counted(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    log = Log(out)
    for _ in range(50):
        log("wrong_token", client="127.0.0.1")
    now[0] += 1
    log("wrong_token", client="127.0.0.1")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(lines) == 6
    assert lines[-1]["held_back"] == 45


def test_any_text_and_number_is_written():
    out = io.StringIO()
    log = Log(out)
    log("failed", text="/srv/\udcff/vault", value=float("nan"), more=[{"\ud800": {"\ud800"}}],
        huge=2**70)  # fmt: skip
    line = json.loads(out.getvalue())
    assert line["text"] == "/srv/\\udcff/vault"
    assert line["value"] is None
    assert line["huge"] == str(2**70)
