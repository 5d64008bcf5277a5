"""The live page shows whatever gates a generation was judged by."""

from __future__ import annotations

from test_web_page import browser, gates, made, needs_chromium, playwright

__all__ = ["browser", "made"]  # fixtures


@needs_chromium
def test_a_gate_that_nobody_told_the_page_of_is_shown(made):
    own = {"gate": "flatness", "value": 0.25, "limit": 0.5, "passed": True, "reason": ""}
    told = own | {"gate": "leak", "title": "what members give away", "share": True}
    made.harness.facts[2] = {"gates": [*gates(), own, told]}
    made.harness.tell(
        "rejected", {"generation": 2, "gates": [told | {"passed": False, "reason": "too much"}]}
    )
    made.rotate()
    shown = made.open()
    shown.click("#timeline summary >> nth=0")
    rows = shown.locator("#timeline table >> nth=0").locator("tbody tr")
    playwright.expect(rows).to_have_count(7, timeout=60_000)
    assert rows.all_inner_texts()[5].split() == ["flatness", "0.25", "≤", "0.5", "✓", "passed"]
    assert rows.all_inner_texts()[6].startswith("what members give away")
    assert "25.0 %" in rows.all_inner_texts()[6]
    failed = shown.locator("#rejected-list li").inner_text()
    assert failed == "what members give away: too much (25.0 %, limit 50.0 %)"
    assert made.said == []
