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


def layout_row(kind, value):
    known = {"family": "bit-flips", "chain": "generated", "target": "generated", "extra": {}}
    return known | {"kind": f"bit-flips-{kind}", "worst": None, "value": {"value": value}}


def test_the_secret_layout_is_told_once_it_was_measured():
    pytest.importorskip("psutil")
    from benchmarks.ownership import layout
    from benchmarks.redteam.tables import of_layout

    kinds = ("layout-next", "layout-replica", "layout-replica-plain", "layout-random")
    rows = [layout_row(kind, 0.01 * place) for place, kind in enumerate(kinds)]
    assert of_layout([{"rows": rows[3:]}]) == []
    (following, replica) = of_layout([{"rows": rows}])
    assert following[2] == "0.0 %; as many at random 3.0 %"
    assert replica[2] == "1.0 %; in a plain layout 2.0 %"
    spent = {name: {"load": 2.0, "answer to 1": 0.5, "answer to 64": 1.0} for name in
             ("secret", "plain")}  # fmt: skip
    told = {what: reached for what, _, reached in layout.lines(
        [{"rows": rows, "milliseconds": spent}]
    )}  # fmt: skip
    assert told["bit flips found on t, on t+1 in the secret layout: points lost"] == "0.00"
    assert told["load, ms: secret layout against plain"] == "2.00 against 2.00"
