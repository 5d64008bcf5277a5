"""The page is complete, self-contained and written whole or not at all."""

import html
import importlib.util
import struct
from pathlib import Path

import pytest

from g2d.core import files
from g2d.errors import G2DError
from g2d.report import matrix
from g2d.report import page as report
from pages import (
    colours_resolve,
    drawn,
    ids_resolve,
    parse,
    picked,
    self_contained,
    whole,
    words,
)


@pytest.mark.parametrize("holds", [self_contained, ids_resolve, colours_resolve])
def test_the_page_is_self_contained_and_whole(redteam_page, holds):
    holds(redteam_page)


def test_a_task_without_images_and_rejections_is_reported_too(summary, tmp_path):
    less = summary | {"images": {"items": []}, "rejected": []}
    text = drawn(whole() | {"summary": less}, tmp_path)
    assert "<img" not in text
    assert "No candidate was rejected" in text


def test_colour_images_are_drawn(summary, tmp_path):
    pixels = [[[255, 0, 0], [0, 255, 0]]]
    item = summary["images"]["items"][0] | {"clean": pixels, "attacked": pixels}
    less = summary | {"images": summary["images"] | {"items": [item]}}
    assert "data:image/png" in drawn(whole() | {"summary": less}, tmp_path)


def test_the_picture_has_the_size_that_the_readme_wants(summary, tmp_path):
    report.save_hero(tmp_path / "hero.png", summary)
    data = (tmp_path / "hero.png").read_bytes()
    assert struct.unpack(">II", data[16:24]) == (1600, 700)


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_a_missing_library_is_told_with_what_to_install(tmp_path, monkeypatch, missing):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == missing else real(n))
    with pytest.raises(G2DError, match=rf"{missing}.*pip install 'g2d\[report\]'"):
        report.render_results(whole(), tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    report.write(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "rename", full)
    with pytest.raises(G2DError, match="No space left"):
        report.write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_that_is_not_there_is_told(summary, tmp_path):
    with pytest.raises(G2DError, match="cannot write"):
        report.write(tmp_path / "no" / "r.html", "x")
    with pytest.raises(G2DError, match="cannot write"):
        report.save_hero(tmp_path / "no" / "hero.png", summary)


def test_every_row_and_family_is_on_the_page(results, redteam_page):
    seen = words(redteam_page)
    for family in results["families"]:
        assert family["title"] in seen
        assert family["question"] in seen
        assert all(name in seen for name in family["identifiers"].values())
    for row in results["rows"]:
        for key in ("threat", "target", "attack", "note"):
            assert row[key] in seen or row["metric"] == "check"
        if row["metric"] != "check" and row["value"]:
            assert matrix.percent(row["value"]).replace("\u00a0", " ") in seen
    table = redteam_page[redteam_page.index('id="rows"') :]
    attacks = [row for row in results["rows"] if row["metric"] != "check"]
    assert table.count('<tr><th scope="row">') == len(attacks)


def test_what_was_not_measured_is_said_in_words(redteam_page):
    seen = words(redteam_page)
    assert "3 rows did not finish" in seen
    assert "white-box, reads the live parameters, noise: failed" in seen
    assert "died, so far 20.0 % [12.0–28.0]" in seen
    assert "not measured" in seen
    assert "8 shadows are too few" in seen
    for text in (">n/m<", ">died<", ">failed<"):
        assert text in redteam_page


def test_sanity_checks_say_whether_they_passed_and_by_what_rule(results, tmp_path):
    seen = words(drawn(results, tmp_path))
    assert "2 sanity checks did not pass or could not be run" in seen
    assert "✓ passed : more steps win no less than fewer (generated)" in seen
    assert "✗ did not pass : ASR reaches 100 % as eps grows (frozen). Rule: ASR >= 99 %" in seen
    assert "– not measured : a planted masking defence is found" in seen
    good = [r for r in results["rows"] if r["extra"].get("passed") or r["metric"] != "check"]
    assert "could not be run" not in words(drawn(results | {"rows": good}, tmp_path))


def test_a_check_without_a_verdict_has_not_passed(results, tmp_path):
    (row,) = picked(results, threat="more steps win no less than fewer")
    row["extra"] = {}
    assert "3 sanity checks did not pass" in words(drawn(results, tmp_path))


def test_a_quick_run_is_called_no_evidence(results, redteam_page, tmp_path):
    assert "not evidence" not in redteam_page
    seen = words(drawn(results | {"quick": True}, tmp_path))
    assert "Smoke test, not evidence." in seen
    assert "--seed 0 --quick" in seen


def test_the_command_makes_the_same_run_again(results, redteam_page, tmp_path):
    line = "g2d attack runs/artificial --examples 100 --eps 0.2 --seed 0"
    assert f"<pre>{line}</pre>" in redteam_page
    some = results | {"families": results["families"][:2], "whole": False}
    assert f"{line} --threat white-box --threat stale<" in drawn(some, tmp_path)
    live = results | {"service": {"url": "http://a", "model": "m; rm"}}
    assert "--service http://a --model 'm; rm'" in words(drawn(live, tmp_path))


def test_no_claim_of_white_box_robustness(results, redteam_page):
    assert "robust" not in (redteam_page + report.markdown(results)).lower()


@pytest.mark.parametrize("value", ["<script>alert(1)</script>", '" onload="x', "{{ 7 * 7 }}"])
def test_hostile_texts_stay_texts(tmp_path, value):
    results = whole() | {"summary": None}
    results["task"] = results["settings_toml"] = value
    results["vault"]["path"] = results["versions"]["art"] = value
    for key in ("title", "question"):
        results["families"][0][key] = value
    for row in results["rows"]:
        row |= {"threat": value, "attack": value, "note": value, "target": value}
        row["extra"] = {"curve": row["extra"].get("curve", []), value: 1, "rule": value}
    page = drawn(results, tmp_path)
    self_contained(page)
    assert value in html.unescape(page)
    assert "onload" not in {name for name, _ in parse(page).attributes}


@pytest.mark.parametrize("missing", ["families", "chains", "vault", "versions", "eps"])
def test_what_is_missing_does_not_break_the_page(results, tmp_path, missing):
    del results[missing]
    assert "Threat" in drawn(results, tmp_path)
    assert report.markdown(results)


def test_a_run_without_rows_or_curves_is_a_page_too(results, tmp_path):
    page = drawn(results, tmp_path)
    assert "<svg" not in page
    assert "flips 80" in page
    del results["summary"]
    assert drawn(results, tmp_path) == page
    seen = words(drawn(results | {"rows": []}, tmp_path))
    assert "No row of this run says." in seen
    assert seen.count("No row: this family was not run.") == len(results["families"])
    report.markdown(results | {"rows": []})


def test_the_same_results_give_the_same_bytes(redteam_page, tmp_path):
    assert drawn(whole(), tmp_path) == redteam_page
    assert report.markdown(whole()) == report.markdown(whole())


@pytest.mark.parametrize("made", [lambda r: report.render_results(r, Path("x")), report.markdown])
def test_results_of_another_version_are_refused(results, made):
    with pytest.raises(G2DError, match=r"g2d-redteam-0.*run `g2d attack` again"):
        made(results | {"format": "g2d-redteam-0"})
