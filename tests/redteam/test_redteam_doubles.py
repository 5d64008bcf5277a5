"""A model of doubles meets every threat: no row fails, whatever a library computes in."""

from __future__ import annotations

import pytest

import g2d
import states
from g2d.core.engine import SerialEngine
from g2d.redteam import attack
from g2d.redteam.threats import threats

pytest.importorskip("art")
pytest.importorskip("pyautoattack")


@pytest.fixture(scope="module")
def doubles(tmp_path_factory):
    path = tmp_path_factory.mktemp("doubles") / "vault"
    with g2d.Defence.build(
        "states:images", path, states.settings(), engine=SerialEngine()
    ) as defence:
        defence.generate(3, seed=3)
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(threats()))
def test_no_row_of_a_threat_fails(doubles, name):
    found = attack(doubles, threats=[name], quick=True, n=10, engine=SerialEngine())
    assert found["rows"]
    failed = [row["note"] for row in found["rows"] if row["status"] not in ("ok", "not measured")]
    assert failed == []
