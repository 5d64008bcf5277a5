"""Alarms and rotations over time, on the live page, for whoever has the token."""

from __future__ import annotations

import itertools

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


DRAWN = """([offsets, button]) => {
  // In one go: every few seconds the page draws anew what the service tells.
  document.querySelectorAll("#alarm-ranges button")[button].click();
  const now = state.now + since();
  const alarms = offsets.map((by) => ({ time: now + by, kind: "drift", level: "warning" }));
  drawAlarmLine({ alarms, rotations: [{ time: now + 7200, generation: 9 }] });
  const all = (found) => [...document.querySelectorAll(`#alarm-plot ${found}`)];
  const drawn = { about: $("alarm-about").textContent, wide: $("alarm-line").clientWidth,
    ticks: all(".grid").map((one) => one.x1.baseVal.value),
    marks: all(".at circle").map((one) => one.cx.baseVal.value) };
  drawAlarmLine(null);
  return { ...drawn, left: $("alarm-about").textContent };
}"""


@needs_chromium
def test_a_clock_that_jumped_neither_hides_the_present_nor_crowds_the_axis(made):
    shown = made.open(viewport={"width": 800, "height": 740})
    shown.click("#watch")
    enter(shown, TOKEN)
    expect(shown, "#watched-note", "held back")
    buttons = shown.locator("#alarm-ranges button").count()
    for offsets in ([-10, 3600], [-10, -1.7e9], [-10, 4e9], [-10] * 500, [0]):
        for button in (0, buttons - 1):
            drawn = shown.evaluate(DRAWN, [offsets, button])
            assert len(drawn["ticks"]) <= 12
            assert all(b - a >= 70 for a, b in itertools.pairwise(drawn["ticks"]))
            assert drawn["marks"]
            assert all(0 < mark < drawn["wide"] for mark in drawn["marks"])
            in_range = sum(by > -900 for by in offsets) if button == 0 else len(offsets)
            assert drawn["about"].startswith(f"{in_range} alarm")
            assert drawn["left"] == ""
    assert made.said == []
