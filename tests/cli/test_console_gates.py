"""The terminal shows whatever gates a manifest holds, known to it or not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from g2d.cli import console
from g2d.settings import Settings

OLD = [
    {"gate": "finite", "value": 0.0, "limit": 0.0, "passed": True, "reason": ""},
    {"gate": "accuracy", "value": 0.0123, "limit": 0.02, "passed": True, "reason": ""},
    {"gate": "distance", "value": 1.25, "limit": 0.02, "passed": True, "reason": ""},
    {"gate": "robust", "value": 0.71875, "limit": 0.5, "passed": True, "reason": ""},
]
OWN = {"gate": "flatness", "value": 0.25, "limit": 0.5, "passed": True, "reason": ""}


def test_a_gate_that_nobody_told_of_is_shown_by_its_name():
    assert list(console.measures({"gates": [*OLD, OWN]})) == [
        ("accuracy drop bound", "1.23%", "2.00%"),
        ("distance", "1.2500", "0.0200"),
        ("robust", "0.71875", "0.5"),
        ("flatness", "0.25", "0.5"),
    ]


def test_a_gate_says_itself_how_it_is_shown():
    own = OWN | {"title": "sharpness of the loss", "share": True}
    assert list(console.measures({"gates": [own]})) == [
        ("sharpness of the loss", "25.00%", "50.00%")
    ]


@pytest.mark.parametrize("last", [1, 3])
def test_a_vault_at_a_glance_has_a_column_for_every_gate(monkeypatch, last):
    made = [
        SimpleNamespace(number=n, created=1e9 + n, manifest={"gates": gates, "cpu_seconds": 1.0})
        for n, gates in ((1, []), (2, OLD), (3, [*OLD, OWN]))
    ]
    vault = SimpleNamespace(
        generations=lambda damaged: made,
        live=lambda: 3,
        exposures=lambda: [1, 2, 3],
        rejections=lambda damaged: [],
    )
    tables = []
    monkeypatch.setattr(console, "print_table", tables.append)
    console.print_generations(vault, last)
    (rows,) = tables
    assert len(rows) == last
    assert len({tuple(row) for row in rows}) == 1  # the same columns for all
    assert list(rows[-1]) == [
        "number", "state", "made", "accuracy drop bound", "class drop", "distance", "stale ASR",
        "flatness", "robust", "CPU s", "rejected",
    ]  # fmt: skip
    assert [row["flatness"] for row in rows] == ["-", "-", "0.25"][-last:]


def test_a_population_lists_the_names_of_its_classes(capsys, monkeypatch):
    base = SimpleNamespace(info={"accuracy": 0.9, "labels": ["ham", "spam"]})
    vault = SimpleNamespace(entries=lambda kind, damaged: [], entry=lambda kind: base)
    console.print_population(vault, Settings())
    assert "labels       0 ham, 1 spam" in capsys.readouterr().out


def test_rates_come_with_n_and_interval_where_n_was_kept():
    stale = {"gate": "stale_asr", "value": 0.25, "limit": 0.5, "passed": True, "n": 40}
    kept = {"gates": [*OLD, stale]}
    assert {t: v for t, v, _ in console.measures(kept, intervals=True)} == {
        "accuracy drop bound": "1.23%",
        "distance": "1.2500",
        "robust": "0.71875",  # an older manifest: n was not kept
        "stale ASR": "25.00% [14.2–40.2] of 40",
    }
