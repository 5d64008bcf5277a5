"""What the serving benchmarks judge by: the service's log, and answers against their own logits."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import g2d
from places import ROOT

pytest.importorskip("psutil")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    """Import a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def logged(bench, path: Path, *events: dict):
    server = object.__new__(bench("benchmarks.serving.process").Server)
    server.log = path
    lines = ["generation 1 is live at x", *(json.dumps(e, separators=(",", ":")) for e in events)]
    path.write_text("\n".join(lines) + "\n")
    return server


def test_events_are_found_however_the_log_is_spaced(bench, tmp_path):
    start, failed = {"event": "start"}, {"event": "failed", "text": "why"}
    held = {"event": "server", "error": "ValueError", "held_back": 7}
    server = logged(bench, tmp_path / "log", start, failed, held, {"event": "server"})
    assert server.events("failed") == [failed]
    assert server.count("server", "error") == 8
    assert server.events("swap") == []


@pytest.mark.parametrize("lines", [[], [{"event": "start"}, {"event": "log", "dropped": 3}]])
def test_a_log_without_its_start_or_with_lines_lost_proves_nothing(bench, tmp_path, lines):
    with pytest.raises(AssertionError):
        logged(bench, tmp_path / "log", *lines).events("failed")


def test_an_answer_is_judged_by_its_own_input_and_generation(bench, tiny_vault):
    load, judge = bench("benchmarks.serving.load"), bench("benchmarks.serving.answers").judge
    bodies = load.bodies(2)
    with g2d.Defence.open(tiny_vault, write=False) as defence, torch.no_grad():
        number, model = defence.generation().number, defence.generation().model()
        logits = [model(torch.from_numpy(x)).numpy().ravel() for x in bodies]

    def verdict(which: int, data: np.ndarray):
        found = judge(tiny_vault, bodies, {(number, which, ",".join(map(str, data)))})
        return found.compared, found.wrong, found.anothers, found.alike

    assert verdict(3, logits[3]) == (1, 0, 0, 0)
    assert verdict(3, logits[4]) == (1, 1, 1, 0)
    assert verdict(3, np.concatenate([logits[3][:10], logits[4][10:]])) == (1, 1, 0, 0)
    assert verdict(3, logits[3][:10]) == (1, 1, 0, 0)
    binary = (number, 0, logits[0].astype("<f4").tobytes().hex())
    assert judge(tiny_vault, bodies, {binary}).wrong == 0
