"""What a worker says, line by line: what is not ours ends it, what telling raises does not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import ClassVar

import pytest

from g2d.errors import GenerationError
from g2d.rotation.events import Alarm
from g2d.service.http.events import Hurried, Signed
from g2d.service.worker import Worker, _obey, _StarvedError

ALARM = '{"told": "alarm", "facts": {"kind": "vault", "text": "t"}}'


def speaking(monkeypatch, *lines: str) -> subprocess.Popen[bytes]:
    """A process in the worker's place that says these lines, then waits."""
    code = f"import sys; print({chr(10).join(lines)!r}, flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, bufsize=0)
    monkeypatch.setattr(Worker, "_running", lambda _: process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("kind", [TypeError, KeyError, ValueError, OSError, RuntimeError])
def test_a_bug_in_the_event_log_does_not_end_a_worker_that_is_sound(monkeypatch, kind, tmp_path):
    told = []

    def tell(event) -> None:
        told.append(event)
        if len(told) == 1:
            raise kind("a bug of ours")

    process = speaking(monkeypatch, ALARM, ALARM, '{"done": 2}', '{"done": 3}')
    worker = Worker(tmp_path, tell=tell, patience=60.0)
    try:
        with pytest.raises(kind, match="a bug of ours"):
            worker.make(1)
        assert process.poll() is None
        assert told == [Alarm("vault", "t")] * 2
        assert worker.make(1) == 3  # not the 2 that answered the order before
    finally:
        end(process)


@pytest.mark.parametrize(
    "line",
    ["no JSON", "[]", "7", "{}", '{"done": "x"}', '{"told": "swap", "facts": {}}',
     '{"told": "alarm", "facts": []}', '{"told": "alarm", "facts": {"kind": "k"}}'],
)  # fmt: skip
def test_a_worker_that_says_what_is_not_ours_is_ended(monkeypatch, line, tmp_path):
    process = speaking(monkeypatch, line)
    try:
        with pytest.raises(GenerationError, match="died"):
            Worker(tmp_path, patience=60.0).make(1)
        assert process.poll() is not None
    finally:
        end(process)


def test_one_that_starves_is_ended_even_if_telling_of_it_fails(monkeypatch, tmp_path):
    def starves(*_):
        raise _StarvedError

    def tell(event) -> None:
        assert isinstance(event, Hurried)
        raise RuntimeError("a bug of ours")

    process = speaking(monkeypatch)
    monkeypatch.setattr(Worker, "_await_line", starves)
    worker = Worker(tmp_path, tell=tell)
    worker._process = process
    try:
        with pytest.raises(RuntimeError, match="a bug of ours"):
            worker.make(1)
        assert process.poll() is not None
    finally:
        end(process)


def test_the_use_of_the_signing_key_travels_to_the_serving_side(monkeypatch, tmp_path):
    """The worker holds the key; the audit log is the serving side's."""
    told = []
    signed = Signed(2, "sha256:ab")

    class Made:
        number = 2
        manifest: ClassVar = {"signer": "sha256:ab"}

    class Makes:
        class vault:  # noqa: N801
            next_number = staticmethod(lambda: 2)
            numbers = staticmethod(lambda after: [])

        exposed = staticmethod(list)
        recent = staticmethod(list)
        generate = staticmethod(lambda **_: [Made])

    assert _obey(Makes, {"do": "make", "after": 1}, told.append, set()) == 2
    assert told == [signed]
    line = json.dumps({"told": signed.name, "facts": signed.facts()})
    process = speaking(monkeypatch, line, '{"done": 2}')
    try:
        assert Worker(tmp_path, tell=told.append, patience=60.0).make(1) == 2
    finally:
        end(process)
    assert told == [signed, signed]
