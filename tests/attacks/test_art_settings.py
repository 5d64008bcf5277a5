"""ART's settings file is there before several processes import ART, and is never written over."""

from __future__ import annotations

import json

import pytest

from g2d.attacks import art

pytest.importorskip("pyautoattack")


def test_it_is_written_once_before_workers_start(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    art.require()
    file = tmp_path / ".art" / "config.json"
    assert json.loads(file.read_text()) == {"ART_DATA_PATH": str(tmp_path / ".art" / "data")}
    file.write_text('{"ART_DATA_PATH": "/elsewhere"}')
    art.require()
    assert file.read_text() == '{"ART_DATA_PATH": "/elsewhere"}'


def test_a_home_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / ".art").write_text("a file where the folder would be")
    monkeypatch.setenv("HOME", str(tmp_path))
    art.require()
    assert (tmp_path / ".art").is_file(), "and it is left as it was"
