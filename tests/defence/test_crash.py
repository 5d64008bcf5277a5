"""SIGKILL at random moments of population, fit and generate: nothing accepted is ever lost."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.hostile.storm import empty, storm

KILLS = 15  # a longer storm: python -m benchmarks.hostile.storm


@pytest.mark.slow
def test_kill_storm(tmp_path, tiny_settings, tiny_vault):
    vault = shutil.copytree(tiny_vault, tmp_path / "vault")
    told = storm(vault, empty(tmp_path / "growing", tiny_settings), KILLS)
    assert told > 2, "the storm left no time to generate anything"
