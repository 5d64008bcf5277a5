"""Results that are older than a kind of row still load, and the page says what they lack."""

import json

import pytest

from g2d.redteam.threats import threats
from g2d.report import page as report
from g2d.report.later import KINDS, lacking
from pages import drawn, told, words
from places import ROOT


def row_of(results, family, **more):
    """A row of the family on generated networks, a copy that may be changed."""
    row = next(
        r for r in results["rows"] if r["family"] == family and r["target"][:9] == "generated"
    )
    return json.loads(json.dumps(row)) | more


def test_older_results_say_which_threats_nobody_tried(results, tmp_path):
    seen, text = words(drawn(results, tmp_path)), report.markdown(results)
    for place in (seen, text):
        for kinds in KINDS.values():
            assert all(word in place for word in kinds.values())
        assert "what outlives up to five rotations" in place
        assert place.count("Not measured in these results") == 3


def test_results_that_have_the_rows_lack_nothing(results):
    for family, kinds in KINDS.items():
        results["rows"] += [row_of(results, family, kind=kind) for kind in kinds]
    for row in results["rows"]:
        row["extra"]["durability"] = []
    assert "Not measured in these results" not in report.markdown(results)


def test_a_row_that_says_why_it_was_not_measured_lacks_nothing(results):
    silent = {"kind": "adaptive-inversion", "status": "not measured", "value": None}
    rows = [*results["rows"], row_of(results, "adaptive", **silent)]
    assert lacking("adaptive", rows) == ""
    assert lacking("white-box", rows) == ""
    elsewhere = [row_of(results, "query", chain="service", target="http://x")]
    assert lacking("query", elsewhere) == "", "a service cannot be looked at after rotations"


def test_one_who_asks_is_told_apart_from_one_who_only_owns(results):
    before = told(results)["What it does not"].replace("\u00a0", " ")
    rate = {"value": 0.77, "low": 0.7, "high": 0.8, "n": 100}
    results["rows"].append(
        row_of(results, "adaptive", kind="adaptive-inversion", threat="asks", value=rate,
               harm=0.77, queries=1000)
    )  # fmt: skip
    after = told(results)["What it does not"].replace("\u00a0", " ")
    added = " With 1,000 answers of the live one to find it by: 77 %."
    assert after.replace(added, "") == before
    assert added in after


@pytest.mark.parametrize("family", KINDS)
def test_the_schema_names_the_kinds_that_came_later(family):
    assert family in threats()
    schema = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert all(f"`{kind}`" in schema for kind in KINDS[family])
