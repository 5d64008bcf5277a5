"""The threat matrix, rivals and curves."""

import re

from g2d.report import matrix
from pages import drawn, parse, picked, whole


def test_rivals_are_compared_line_by_line(results):
    counts = {r["name"]: r for r in matrix.rivals(matrix.matrix(results["rows"]))}
    assert counts["retrained"]["less"] == 0  # 30 against 40 with intervals of 8 overlap
    assert counts["soup"] == {"name": "soup", "less": 2, "alike": 1, "more": []}
    for row in picked(results, family="stale", target="generated"):
        row["value"] = {"value": 0.99, "low": 0.98, "high": 1.0, "n": 100}
        row["harm"] = 0.99
    counts = {r["name"]: r for r in matrix.rivals(matrix.matrix(results["rows"]))}
    assert "stale: reads one exposed generation" in counts["soup"]["more"]


def test_the_matrix_shows_the_attackers_best_and_clocks_apart(results):
    lines = matrix.matrix(results["rows"])
    clocks = {line.clock for line in lines if line.family == "query" and "generated" in line.rows}
    assert clocks == {"no rotation", "a rotation every 500 queries", "a rotation every 100 queries"}
    twice = [r | {"attack": f"A{i}"} for i in (1, 2) for r in picked(results, family="universal")]
    assert [line.attack for line in matrix.matrix(twice)] == ["A1", "A2"]
    same = [*picked(results, family="universal"), *picked(results, family="universal")]
    same[2] = same[2] | {"harm": 0.9}
    (line,) = matrix.matrix(same)
    assert line.cells["generated"]["text"] == "90"


def test_measures_of_one_attack_do_not_hide_each_other(results):
    rows = picked(results, family="universal")
    lines = matrix.matrix([*rows, *(row | {"metric": "TPR at 1 % FPR"} for row in rows)])
    assert [line.name.endswith(", TPR at 1 % FPR") for line in lines] == [False, True]


def test_columns_and_clocks_come_from_keys_and_not_from_words(results):
    row = picked(results, family="universal")[0]
    asked = row | {"chain": "soup", "target": "whatever it is called", "extra": {"every": 100}}
    (line,) = matrix.matrix([asked])
    assert (list(line.rows), line.clock) == (["soup"], "a rotation every 100 queries")
    still = asked | {"extra": {"every": None}}
    assert matrix.clock_of(still) == "no rotation"
    assert matrix.chain_of(asked | {"chain": "service"}) == matrix.ELSEWHERE
    assert matrix.chain_of(row | {"target": "noise, no rotation"}) == "noise"  # a file of 0.1


def test_harm_out_of_range_or_missing_is_drawn_all_the_same(results, tmp_path):
    first, second = picked(results, family="universal")
    first["harm"], second["harm"] = -0.02, None
    page = drawn(results, tmp_path)
    assert "--h: 0.000" in page
    assert re.search(r'<td class="quiet" title="ASR 33[^"]*">33</td>', page)


def test_curves_are_drawn_for_every_family_that_has_them(redteam_page):
    results = whole() | {"summary": None}
    groups = matrix.panels(results["rows"], results["families"])
    shown = {group["family"]: len(group["panels"]) for group in groups}
    assert shown == {"stale": 2, "query": 2, "white-box": 1, "bit-flips": 2, "adaptive": 1}
    (query,) = [group for group in groups if group["family"] == "query"]
    labels = [line["label"] for line in query["panels"][0]["lines"]]
    assert labels[0] == "generated, no rotation"
    assert labels[-1] == "frozen, no rotation"
    assert query["controls"][0]["title"].endswith("noise")
    stale = next(group for group in groups if group["family"] == "stale")["panels"][0]
    drawn = {row["target"] for row in results["rows"] if row["family"] == "stale"}
    assert [line["label"] for line in stale["lines"]] == [t for t in matrix.TARGETS if t in drawn]
    assert parse(redteam_page).tags.count("svg") == 5 + 8 + 2


def test_more_lines_than_can_be_told_apart_get_panels_of_their_own():
    results = whole() | {"summary": None}
    row = picked(results, family="adaptive")[0]
    rows = [row | {"attack": f"draws, variant {i}"} for i in range(11)]
    (group,) = matrix.panels(rows, results["families"])
    assert [len(panel["lines"]) for panel in group["panels"]] == [8, 3]


def test_points_without_a_value_are_left_out(tmp_path):
    results = whole() | {"summary": None}
    row = picked(results, family="adaptive")[0]
    row["extra"]["curve"].append({"draws": 200, "value": None})
    drawn(results, tmp_path)
    row["extra"]["curve"] = [{"draws": 200, "value": None}]
    assert "curves-adaptive" not in drawn(results, tmp_path)
