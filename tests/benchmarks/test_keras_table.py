"""Keras' table holds each way against torch's time of the same turn."""

import json

import pytest

pytest.importorskip("psutil")

from benchmarks.interop import tables


def test_each_ratio_is_of_the_same_turn(tmp_path):
    times = {
        "torch": {"step": [1.0, 2.0], "answer": [1.0, 1.0]},
        "adapter": {"step": [2.0, 4.0], "answer": [3.0, 3.0]},
    }
    result = {
        "milliseconds": {"small": times}, "commit": "abc",
        "arguments": {"batch": 8, "turns": 2, "steps": 3},
    }  # fmt: skip
    (tmp_path / tables.FILE).write_text(json.dumps(result))
    told = tables.made(tmp_path)["interop-keras"]
    assert "| small, run by Keras: step | ≤ 2.5 × | 2.00 × (2.00 to 2.00) |" in told
    assert "| small, run by Keras: answer | ≤ 2.5 × | 3.00 × (3.00 to 3.00) |" in told
    assert "translated" not in told
    assert told.endswith("commit abc.")


def test_what_is_not_measured_says_so(tmp_path):
    assert "not measured yet" in tables.made(tmp_path)["interop-keras"]
