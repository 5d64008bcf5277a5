"""The Markdown tables, and the schema of the results."""

import re

from g2d.report import page as report
from pages import cells
from places import ROOT


def test_the_markdown_tables_are_well_formed(results):
    hostile = "a | b\n`c` <script> *d* [e](javascript:f) \\"
    results["rows"][0] |= {"note": hostile, "threat": hostile}
    text = report.markdown(results)
    tables = [block for block in re.split(r"\n\n+", text) if block.startswith("|")]
    # One for each family, that of identifiers, and what decides whether to buy.
    assert len(tables) == len(results["families"]) + 2
    for table in tables:
        lines = table.strip().split("\n")
        assert set(cells(lines[1])) == {" --- "}
        assert {len(cells(line)) for line in lines} == {len(cells(lines[0]))}
    rows = sum(len(table.strip().split("\n")) - 2 for table in tables[1:-1])
    assert rows == len(results["rows"])
    assert "<script>" not in text
    assert "](javascript" not in text


def test_the_markdown_table_says_what_was_found(results):
    text = report.markdown(results)
    assert "| failed |" in text
    assert "| not measured |" in text
    assert "agreement: 70.0 % [62.0–78.0]" in text
    assert "| did not pass |" in text
    assert "MITRE ATLAS 2026.10" in text
    for family in results["families"]:
        assert f"### {family['title']}\n" in text
        assert family["identifiers"]["nist"] in text


def test_the_schema_names_every_field(results):
    """docs/results.md and what is written do not drift apart."""
    schema = (ROOT / "docs" / "results.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z_]+)`", schema))
    assert set(results) - {"summary"} <= named
    curves = [family["curve"] or {} for family in results["families"]]
    for part in (*results["rows"], *results["families"], *curves, results["vault"]):
        assert set(part) <= named
