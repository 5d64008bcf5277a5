"""Jobs travel to workers from any script, and a dead worker says what it died of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from g2d.core.engine import LocalEngine, SerialEngine
from g2d.core.jobs import WorkerError
from g2d.core.workers import cause_of_death
from g2d.errors import PopulationError
from places import ROOT


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Workers that import no torch: how they start and end is the same."""
    monkeypatch.setattr("g2d.core.engine._start_worker", abs)


def kill_itself(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def leave(code: int) -> None:
    sys.exit(code)


def fall(code: int) -> None:
    os._exit(code)


@pytest.mark.parametrize(
    ("work", "payload", "words"),
    [
        (kill_itself, "SIGKILL", r"killed by SIGKILL \(most likely by the system, which was out"),
        (kill_itself, "SIGSEGV", r"killed by SIGSEGV \(a crash in native code"),
        (fall, 3, "ended with exit code 3"),
    ],
)
def test_a_dead_worker_says_what_it_died_of(work, payload, words):
    with LocalEngine(1) as engine, pytest.raises(PopulationError, match=words):
        list(engine.run(work, [payload]))


def test_a_job_that_leaves_is_told_apart_from_a_worker_that_died():
    with LocalEngine(1) as engine, pytest.raises(WorkerError, match=r"called sys\.exit\(4\)"):
        list(engine.run(leave, [4]))


def test_one_dead_worker_takes_others_with_it():
    assert "SIGBUS" in cause_of_death([-signal.SIGTERM, -signal.SIGBUS, 0, None], False)
    assert "SIGTERM" in cause_of_death([-signal.SIGTERM, 0], False)
    assert "signal 62" in cause_of_death([-62], False) or "SIGRT" in cause_of_death([-62], False)
    assert "nobody knows" in cause_of_death([None], False)
    assert "__main__" in cause_of_death([1], True)
    assert "__main__" not in cause_of_death([1], False)


class Unloadable:
    def __reduce__(self):
        return int, ("no number",)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (lambda: 1, "cannot travel to a worker process .*put it into a module"),
        (partial(print, lambda: 1), "cannot travel"),
        (sys.stdout, "cannot travel"),
        (Unloadable(), "cannot load its job .ValueError: invalid literal"),
    ],
)
def test_what_cannot_travel_is_one_line(payload, words):
    with LocalEngine(1) as engine, pytest.raises(PopulationError, match=words) as caught:
        list(engine.run(repr, [payload]))
    assert "\n" not in str(caught.value)


HEAD = """
from functools import partial
from g2d.core import engine
from g2d.core.engine import LocalEngine
from g2d.errors import PopulationError

engine._start_worker = abs

def own(x):
    return 10 * x

def run(work):
    with LocalEngine(1) as engine:
        try:
            print(sorted(engine.run(work, [1, 2])))
        except PopulationError as error:
            print(error)
"""
NAMED = HEAD + "run(abs)\n"
OWN = HEAD + "run(partial(own))\n"
GUARDED = HEAD + 'if __name__ == "__main__":\n    run(partial(own))\n'
RAISES = HEAD + 'if __name__ == "__main__":\n    run(own)\nelse:\n    raise ValueError("mine")\n'


def ran(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], input=given, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip


def test_a_script_without_a_guard_needs_none_for_what_is_importable(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(NAMED)
    assert ran(str(script)).stdout == "[(0, 1), (1, 2)]\n"


def test_a_script_on_standard_input_says_what_is_wrong_with_it():
    assert ran("-", given=NAMED).stdout == "[(0, 1), (1, 2)]\n"
    said = ran("-", given=OWN)
    assert said.stdout.startswith("own is defined in a notebook, a console or a script on standard")
    assert said.stderr == ""


def test_what_a_script_defines_travels_under_a_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(GUARDED)
    assert ran(str(script)).stdout == "[(0, 10), (1, 20)]\n"
    script.write_text(OWN)
    said = ran(str(script))
    assert "could not start: what the script does has to stand under `if __name__" in said.stdout
    assert said.stderr == ""
    script.write_text(RAISES)
    said = ran(str(script))
    assert "ended with exit code 1; if it said why, it stands above" in said.stdout
    assert "ValueError: mine" in said.stderr


def test_an_engine_goes_on_after_a_dead_worker():
    with LocalEngine(1) as engine:
        with pytest.raises(PopulationError):
            list(engine.run(fall, [3]))
        assert list(engine.run(abs, [-1])) == [(0, 1)]
    assert list(SerialEngine().run(abs, [-1])) == [(0, 1)]
