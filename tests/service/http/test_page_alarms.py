"""Alarms and rotations over time, on the live page, for whoever has the token."""

from __future__ import annotations

from test_web_page import (
    CONTRAST,
    HOSTILE,
    TOKEN,
    WAIT,
    browser,
    enter,
    expect,
    made,
    needs_chromium,
)

__all__ = ["browser", "made"]  # fixtures


@needs_chromium
def test_alarms_and_rotations_are_on_one_axis_of_time_for_whoever_has_the_token(made):
    assert made.rotate() == 2
    alarm = made.harness.rotation.alarm
    for client, level in (
        ("192.0.2.1", "warning"),
        ("192.0.2.1", "critical"),
        (HOSTILE * 9, "notice"),
    ):
        alarm("query_attack", "t", rotate=False, level=level, client=client)
    alarm("drift", HOSTILE, rotate=False)
    shown = made.open(viewport={"width": 400, "height": 740})
    expect(shown, "#watched-note", "are for operators")
    assert shown.locator("#alarm-line").is_hidden()
    shown.click("#watch")
    enter(shown, TOKEN)
    expect(shown, "#alarm-about", "4 alarms and 1 rotation in")
    assert shown.locator("#alarm-plot .swap text").inner_html() == "2"
    lanes = shown.locator("#alarm-plot text:has(.kind)").all_text_contents()
    assert lanes[:2] == ["query_attack  192.0.2.1", "drift"]
    assert lanes[2].startswith("query_attack  <")
    for level in ("critical", "warning", "notice"):
        assert shown.locator(f"#alarm-plot .at.{level}").count() == 1 + (level == "warning")
    for width in (400, 1280):
        shown.set_viewport_size({"width": width, "height": 740})
        drawn = f"document.querySelector('#alarm-plot svg').clientWidth > {width - 130}"
        shown.wait_for_function(drawn, timeout=WAIT)
        assert shown.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    shown.click("#alarm-ranges button >> nth=0")
    assert shown.locator("#alarm-ranges [aria-pressed=true]").inner_text() == "15 min"
    assert shown.evaluate(CONTRAST)[1] >= 4.5
    assert shown.title() != "owned"
    assert made.said == []
