"""What the page shows of novelty, and how it stays short: lines of the matrix, rows by family."""

import json
import re

import pytest

from g2d.report import page as report
from places import DATA

NOVELTY = {
    "bar": 0.94,
    "margin": 0.01,
    "unit": 0.05,
    "aligned": True,
    "members": 16,
    "fitted": 20,
    "most": {"networks": 6, "unit": 12},
    "rows": [
        {
            "name": name, "networks": 6, "accuracy": 0.95, "passed": 0.5, "distance": distance,
            "disagreement": 0.031, "novel": {"1": 0.5, "2": 0.25, "3": 0.0},
        }
        for name, distance in (("generations", 0.175), ("soups", 0.02))
    ],
}  # fmt: skip


def drawn(folder, **summary):
    """The page of the results under `tests/data`, without curves, which are slow."""
    results = json.loads((DATA / "results.json").read_text("utf-8"))
    results["summary"] |= summary
    for row in results["rows"]:
        row["extra"].pop("curve", None)
    path = folder / "page.html"
    report.render_results(results, path)
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("layout"), novelty=NOVELTY)


def test_novelty_is_a_table_that_says_what_it_left_out(page):
    text = " ".join(page.split())
    for told in ("Novel, τ = 3", "0.175 (3.5 units)", "3.1 %", "16 of the 20 members", "94.0 %"):
        assert told in text
    assert "at most 6 networks a line" in text


def test_a_summary_of_an_older_version_has_no_such_table(tmp_path):
    assert 'id="novelty"' not in drawn(tmp_path)
    assert 'id="novelty"' not in drawn(tmp_path, novelty=None)


def test_a_line_of_the_matrix_keeps_its_whole_name_and_all_words_of_its_attack(page):
    lines = re.findall(
        r'<tr><th scope="row" title="([^"]*)"><span class="label"><span>([^<]+)</span> '
        r"<small>([^<]*)</small>",
        page,
    )
    assert len(lines) > 20
    assert all(name and title == attack for title, name, attack in lines)


def test_rows_of_a_family_are_folded_and_their_number_is_told(page):
    rows = page.count('<table class="cards rows">')
    assert rows > 3
    assert len(re.findall(r"<details><summary>\d+ rows?(, \d+ CPU s)?</summary>", page)) == rows
