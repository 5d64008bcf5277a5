"""What no command expects: one line and a file with the trace, whichever process it came from."""

import re
import stat
import sys
import tempfile
import types
from pathlib import Path

import pytest

from commands import fail
from g2d.cli import failures
from g2d.core.engine import LocalEngine, SerialEngine
from g2d.core.jobs import WorkerError


class OwnError(Exception):
    """Cannot be read back from its pickle: it wants two arguments, and keeps one."""

    def __init__(self, what, how):
        super().__init__(f"{what} {how}")


def raises_its_own(_):
    raise OwnError("bad", "shape")


def raises(_):
    return {}["no such layer"]


def leaves(_):
    sys.exit(0)


@pytest.fixture
def traces(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda: sorted(tmp_path.glob("g2d-trace-*.txt"))


@pytest.fixture
def demo_is(monkeypatch):
    def arrange(run):
        monkeypatch.setitem(sys.modules, "g2d.cli.demo", types.SimpleNamespace(run=run))

    return arrange


def test_a_surprise_is_one_line_and_a_file_with_the_trace(demo_is, traces):
    demo_is(lambda **_: raises(0))
    said = fail("demo")
    (trace,) = traces()
    assert said.startswith("error: KeyError: 'no such layer' (")
    assert f"{Path(__file__).name}, line " in said
    assert said.rstrip().endswith(f"The trace is in {trace}")
    assert stat.S_IMODE(trace.stat().st_mode) == 0o600
    assert "Traceback" in trace.read_text()
    assert "in raises" in trace.read_text()


def test_an_exit_from_foreign_code_is_an_error_too(demo_is, traces):
    demo_is(lambda **_: leaves(0))
    assert fail("demo").startswith("error: SystemExit: 0 (")
    assert len(traces()) == 1


def test_where_no_trace_can_be_kept_the_line_says_how_to_see_it(demo_is, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    demo_is(lambda **_: raises(0))
    assert "run `g2d --traceback ...` to see it" in fail("demo")


def test_a_trace_is_bounded_and_so_is_their_number(traces):
    kept = failures.keep_trace("a" * 10**6 + "the end")
    assert kept.stat().st_size < failures._LONGEST + 1000
    assert f"{10**6 + 7 - failures._LONGEST} characters left out" in kept.read_text()
    assert kept.read_text().endswith("the end")
    made = [failures.keep_trace("x") for _ in range(failures._MOST + 5)]
    assert len(traces()) == failures._MOST
    assert made[-1] in traces()


@pytest.mark.parametrize("work", [raises_its_own, leaves])
def test_what_a_worker_raises_arrives_with_its_words(work):
    """Both used to be told as a killed worker, or to end the command in silence."""
    with LocalEngine(1) as engine, pytest.raises(WorkerError) as caught:
        list(engine.run(work, [0]))
    words = "OwnError: bad shape" if work is raises_its_own else "called sys.exit(0)"
    assert words in str(caught.value)
    assert f"in {work.__name__}" in str(caught.value.__cause__)


def test_a_surprise_in_a_worker_is_told_where_it_happened(demo_is, traces):
    def run(**_):
        with LocalEngine(1) as engine:
            list(engine.run(raises, [0]))

    demo_is(run)
    said = fail("demo")
    (trace,) = traces()
    line = raises.__code__.co_firstlineno + 1
    assert re.match(
        rf"error: KeyError: 'no such layer' \(.*{Path(__file__).name}, line {line}\)", said
    )
    assert "in raises" in trace.read_text()


def test_jobs_here_raise_as_they_are():
    with SerialEngine() as engine, pytest.raises(OwnError):
        list(engine.run(raises_its_own, [0]))
