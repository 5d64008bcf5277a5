"""What the page reads of a red team's results."""

from __future__ import annotations

import json
import shutil

from g2d.service.http.redteam_summary import Findings, compact
from places import DATA

RESULTS = DATA / "results.json"


def test_findings_are_read_when_the_file_changes(tmp_path):
    now = [0.0]
    path = tmp_path / "results.json"
    findings = Findings(path, lambda: now[0])
    assert findings.read() is None
    shutil.copy(RESULTS, path)
    assert findings.read() is None, "it looked again within 10 s"
    now[0] = 11.0
    first = findings.version()
    found = findings.read()
    assert found["rows"]
    assert found["generations"] == sorted(found["generations"])
    assert findings.read() is found
    path.write_text('{"format": "another"}')
    now[0] = 22.0
    assert findings.version() != first
    assert "another" in findings.read()["error"]
    path.write_text('{"format": "g2d-redteam-1", "rows": 3}')
    now[0] = 33.0
    assert "is not what" in findings.read()["error"]


def test_findings_keep_the_attackers_best():
    results = json.loads(RESULTS.read_text())
    found = compact(results)
    asked = [row for row in results["rows"] if row["metric"] != "check"]
    assert len(found["rows"]) == len(asked)
    assert all(row["value"] is None or 0 <= row["value"]["value"] <= 1 for row in found["rows"])
    for line in found["best"]:
        assert line["cells"]["generated"]["n"] > 0
