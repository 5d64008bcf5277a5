"""The table of traces counts leaks, false accusations and marks as its records say."""

import json

import pytest

pytest.importorskip("psutil")

from benchmarks.ownership import tracing


def case(kind, named=0, wrong=0, parts=0):
    return {"kind": kind, "named": named, "wrong": wrong, "parts": parts}


def test_a_leak_that_names_another_generation_too_is_not_attributed():
    cases = [
        case("leak: int4", 1, 0, 1), case("leak: int4", 1, 1, 1), case("leak: int4", 0, 0, 1),
        case("unrelated"), case("soups", 2, 1, 3), case("forgotten", 0, 1),
    ]  # fmt: skip
    marks = [{"lost": 0.01, "stale_risen": -0.02, "right": True, "wrong": False}]
    timing = {"generations": 1000, "cpu_seconds": 12.34}
    made = {what: reached for what, _, reached in tracing.rows(
        {"cases": cases, "marks": marks, "time": timing}
    )}  # fmt: skip
    assert made["leaks attributed"] == made["- int4"] == "1 of 3"
    assert made["false accusations: unrelated"] == "0 of 1"
    assert made["false accusations: soups"] == made["false accusations: forgotten"] == "1 of 1"
    assert made["parts of soups named"] == "2 of 3"
    assert made["marks: accuracy lost"] == "1.00 points"
    assert made["a trace over 1000 generations"] == "12.3 s"


def test_a_smaller_run_tells_of_its_own_cases_alone(tmp_path, monkeypatch):
    trial = object.__new__(tracing.Trial)
    trial.file = tmp_path / "traced.jsonl"
    lines = [json.dumps({"kind": "unrelated", "name": f"{k}"}) for k in range(3)]
    trial.file.write_text("\n".join(lines) + "\n" + lines[0][:9])
    asked = [tracing.Case("unrelated", name, (), dict) for name in ("1", "new")]
    monkeypatch.setattr(trial, "cases", lambda: iter(asked))
    monkeypatch.setattr(trial, "_judge", lambda case: {"kind": case.kind, "name": case.name})
    assert [record["name"] for record in trial.judged()] == ["1", "new"]
    assert len(trial.file.read_text().splitlines()) == 4
