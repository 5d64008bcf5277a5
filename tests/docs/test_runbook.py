"""The runbook knows every kind of alarm that is raised, and its commands and settings exist."""

from __future__ import annotations

import re

from g2d.settings import Settings
from places import ROOT

PAGE = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
RAISED = re.compile(
    r"""(?:\bAlarm\(|\balarm\()\s*"(\w+)"|^(?:KIND|GROWTH) = "(\w+)"$""", re.M | re.S
)


def test_every_kind_of_alarm_stands_in_the_runbook():
    raised = {
        "".join(found)
        for folder in ("service", "rotation", "protect/audit")
        for file in (ROOT / "src" / "g2d" / folder).rglob("*.py")
        for found in RAISED.findall(file.read_text("utf-8"))
    }
    assert {"query_attack", "drift", "canary", "growth", "late", "expired"} <= raised
    runbook = PAGE.split("## Runbook")[1].split("\n## ")[0]
    told = {
        name
        for line in runbook.split("\n")
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert raised - told == set()


def test_settings_that_the_runbook_names_exist():
    for section, name in re.findall(r"`\[(monitors|refresh|serve|vault)\] (\w+)", PAGE):
        assert hasattr(getattr(Settings(), section), name), name
