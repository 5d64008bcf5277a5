"""The red team on a table: inside the budget where it can be, "not measured" and why elsewhere."""

from pathlib import Path

import pytest

import g2d
from g2d import redteam
from g2d.core.engine import SerialEngine


@pytest.fixture(scope="module")
def rows(tmp_path_factory, tiny_settings):
    folder = tmp_path_factory.mktemp("table") / "vault"
    settings = tiny_settings.override(
        task__name="tables:table_task", gates__accuracy_drop=0.8, gates__class_drop=1.0
    )
    engine = SerialEngine()
    with g2d.Defence.build("tables:table_task", folder, settings, engine=engine) as defence:
        defence.generate(1)
    threats = ["white-box", "query"]
    pytest.importorskip("pyautoattack")
    pytest.importorskip("art")
    return redteam.attack(Path(folder), threats=threats, quick=True, n=20, engine=engine)["rows"]


def of(rows, kind):
    found = [row for row in rows if row["kind"] == kind]
    assert found, kind
    return found


def test_what_cannot_respect_the_budget_is_not_measured_and_says_why(rows):
    for kind, why in (
        ("white-box-autoattack", "one eps for all features and drops rows"),
        ("query-square", "points that a table's budget forbids"),
        ("query-hop-skip-jump", "points that a table's budget forbids"),
    ):
        for row in of(rows, kind):
            assert (row["status"], row["value"]) == ("not measured", None)
            assert why in row["note"]


def test_the_rest_is_measured(rows):
    for kind in ("white-box-sweep", "query-square-clock"):
        assert all(row["status"] == "ok" and row["value"] for row in of(rows, kind)), kind
    frozen = [row for row in of(rows, "white-box-sweep") if row["chain"] == "frozen"]
    assert frozen[0]["value"]["value"] > 0.3
