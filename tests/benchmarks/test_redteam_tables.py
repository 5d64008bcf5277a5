"""The red team's tables: what outlives rotations is pooled over seeds."""

import pytest

from g2d.redteam.scoring import wilson


def row(*points):
    return {"target": "generated", "attack": "Square", "extra": {"durability": list(points)}}


def point(rotations, value, n):
    return {"rotations": rotations, "value": value, "n": n, "low": 0.0, "high": 1.0}


def test_finds_of_all_seeds_are_counted_together():
    pytest.importorskip("psutil")
    from benchmarks.redteam.tables import outlived

    seeds = [row(point(1, 0.5, 8), point(2, 0.25, 8)), row(point(1, 1.0, 2))]
    text = outlived([seeds, [{"target": "frozen", "attack": "Square", "extra": {}}]])
    low, high = wilson(6, 10)
    assert f"| generated | Square | 60 ({100 * low:.0f}–{100 * high:.0f}), n 10 | 25 (" in text
    assert text.rstrip().endswith("| – | – | – |")
    assert "frozen" not in text
    assert outlived([[{"target": "x", "attack": "y", "extra": {}}]]) == ""


def test_who_asks_the_live_network_is_not_quoted_for_who_only_owns_the_generator():
    pytest.importorskip("psutil")
    from benchmarks.redteam.tables import pick

    def of(kind, value):
        return {"family": "adaptive", "kind": kind, "chain": "generated", "target": "generated",
                "extra": {}, "worst": None, "value": {"value": value}}  # fmt: skip

    runs = [{"rows": [of("adaptive-inversion", 0.6), of("adaptive-samples", 0.2)]}]
    assert pick(runs, "adaptive", "generated")["mean"] == "20 %"
    assert pick(runs, "adaptive-inversion", "generated")["mean"] == "60 %"
