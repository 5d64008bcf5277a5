"""The report shows whatever gates the manifests hold, each value in its gate's column."""

from __future__ import annotations

import re

import jinja2

from g2d.report.page import TEMPLATES


def gate(name, value, **more):
    return {"gate": name, "value": value, "limit": 0.5, "passed": value < 0.5} | more


def cells(generations):
    """Rows of the table of gates, as texts."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, autoescape=True
    )
    environment.filters["percent"] = str
    parts = environment.get_template("parts.html").module
    page = parts.gates({"generations": generations, "rejected": []})
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
    return [[" ".join(re.sub(r"<[^>]*>", "", c).split()) for c in row] for row in found]


def test_generations_that_other_gates_judged_share_a_table():
    rest = {"origin": "base", "attempts": 1, "cpu_seconds": 2.0}
    own = gate("flatness", 0.75, title="sharpness of the loss")
    assert cells([
        {"number": 1, "gates": []} | rest,
        {"number": 2, "gates": [gate("accuracy", 0.125), gate("distance", 0.25)]} | rest,
        {"number": 3, "gates": [gate("distance", 0.375), own]} | rest,
    ]) == [
        ["Generation", "accuracy", "distance", "sharpness of the loss", "Candidates", "CPU s"],
        ["1", "base: what was deployed first", "1", "2.00"],
        ["2", "✓ 0.125 [0.5]", "✓ 0.250 [0.5]", "–", "1", "2.00"],
        ["3", "–", "✓ 0.375 [0.5]", "✗ 0.750 [0.5]", "1", "2.00"],
    ]  # fmt: skip
