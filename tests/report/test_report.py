"""The page is complete, self-contained and written whole or not at all."""

import html
import importlib.util
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from g2d.core import files
from g2d.errors import G2DError
from g2d.report import matrix as redplots
from g2d.report import page as report
from places import DATA, ROOT

RESULTS = DATA / "results.json"


def whole():
    return json.loads(RESULTS.read_text("utf-8"))


@pytest.fixture
def results():
    """Without plots, which are slow; `redteam_page` has them."""
    read = whole() | {"summary": None}
    for row in read["rows"]:
        row["extra"].pop("curve", None)
    return read


@pytest.fixture
def summary():
    return whole()["summary"]


class Tags(HTMLParser):
    """Collects tags, ids and what refers to something."""

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.links, self.images = [], [], [], []
        self.attributes = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.attributes += attrs
        self.tags.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]
        if tag == "img":
            self.images.append(values.get("alt"))


def drawn(results, folder):
    path = folder / "redteam.html"
    report.render_results(results, path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def redteam_page(tmp_path_factory):
    return drawn(whole(), tmp_path_factory.mktemp("page"))


def parse(page):
    tags = Tags()
    tags.feed(page)
    return tags


def self_contained(page):
    tags = parse(page)
    assert tags.links
    assert all(link.startswith(("#", "data:")) for link in tags.links)
    assert not {"script", "link", "iframe", "base", "object", "embed"} & set(tags.tags)
    style = "".join(re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL))
    assert "@import" not in style
    assert re.findall(r"url\((?!#)", page) == []
    # What is left of http:// in tags are names of XML namespaces, which nothing fetches.
    for found in re.findall(r"https?://[^\"'\s<>]*", "".join(re.findall(r"<[^>]*>", page))):
        assert found in ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")


def ids_resolve(page):
    tags = parse(page)
    assert len(tags.ids) == len(set(tags.ids))
    targets = re.findall(r"url\(#([^)]+)\)", page) + [x[1:] for x in tags.links if x[0] == "#"]
    labelled = re.findall(r'aria-labelledby="([^"]+)"', page)
    assert set(targets + labelled) <= set(tags.ids)


def colours_resolve(page):
    assert "#0a0b" not in page
    assert "#0a0c" not in page
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", page))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", page))
    assert "prefers-color-scheme: dark" in page


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


# --- the red team's page ---


def words(page):
    """What a reader sees, on one line."""
    text = re.sub(r"<(style|svg).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def picked(results, **wanted):
    return [r for r in results["rows"] if all(r[key] == value for key, value in wanted.items())]


def told(results):
    return {line["label"]: line["text"] for line in report.answer(results)}


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
            assert redplots.percent(row["value"]).replace("\u00a0", " ") in seen
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


def test_the_answer_is_made_of_the_rows_numbers(results):
    said = {label: text.replace("\u00a0", " ") for label, text in told(results).items()}
    buys, lacks = said["What rotation buys"], said["What it does not"]
    assert "(joint over the last 5 exposed generations) flip 35 % of the examples" in buys
    assert "95 % on the base, if it never changed; 45 % if every rotation" in buys
    assert (
        "72 % without rotation, 48 % with one every 500 queries (24 % of the finds outlive" in buys
    )
    assert "cost a generation 80 % of the examples cost the next one 1 %" in buys
    assert "still flips 80 % on average and 85 % of the worst generation; 90 % of the" in lacks
    assert "Whoever owns the generator flips 55 % (frozen model: 92 %)" in lacks


def test_rotation_that_does_not_help_is_not_sold(results):
    """Equal or higher rates move to the third box, or are called no gain."""
    stale = picked(results, family="stale")
    results["rows"] += [row | {"target": "unrotated"} for row in stale if row["target"] == "frozen"]
    for row in picked(results, family="stale") + picked(results, family="query"):
        row["value"] = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 100}
        row["harm"] = 0.7
    said = told(results)
    assert "(no gain beyond chance)" in said["What rotation buys"]
    assert "queries" not in said["What rotation buys"]
    assert "Rotation does not stop this attacker." in said["What it does not"]


def test_no_claim_of_white_box_robustness(results, redteam_page):
    assert "robust" not in (redteam_page + report.markdown(results)).lower()


def test_rivals_are_compared_line_by_line(results):
    counts = {r["name"]: r for r in redplots.rivals(redplots.matrix(results["rows"]))}
    assert counts["retrained"]["less"] == 0  # 30 against 40 with intervals of 8 overlap
    assert counts["soup"] == {"name": "soup", "less": 2, "alike": 1, "more": []}
    for row in picked(results, family="stale", target="generated"):
        row["value"] = {"value": 0.99, "low": 0.98, "high": 1.0, "n": 100}
        row["harm"] = 0.99
    counts = {r["name"]: r for r in redplots.rivals(redplots.matrix(results["rows"]))}
    assert "stale: reads one exposed generation" in counts["soup"]["more"]


def test_the_matrix_shows_the_attackers_best_and_clocks_apart(results):
    lines = redplots.matrix(results["rows"])
    clocks = {line.clock for line in lines if line.family == "query" and "generated" in line.rows}
    assert clocks == {"no rotation", "a rotation every 500 queries", "a rotation every 100 queries"}
    twice = [r | {"attack": f"A{i}"} for i in (1, 2) for r in picked(results, family="universal")]
    assert [line.attack for line in redplots.matrix(twice)] == ["A1", "A2"]
    same = [*picked(results, family="universal"), *picked(results, family="universal")]
    same[2] = same[2] | {"harm": 0.9}
    (line,) = redplots.matrix(same)
    assert line.cells["generated"]["text"] == "90"


def test_measures_of_one_attack_do_not_hide_each_other(results):
    rows = picked(results, family="universal")
    lines = redplots.matrix([*rows, *(row | {"metric": "TPR at 1 % FPR"} for row in rows)])
    assert [line.name.endswith(", TPR at 1 % FPR") for line in lines] == [False, True]


def test_harm_out_of_range_or_missing_is_drawn_all_the_same(results, tmp_path):
    first, second = picked(results, family="universal")
    first["harm"], second["harm"] = -0.02, None
    page = drawn(results, tmp_path)
    assert "--h: 0.000" in page
    assert re.search(r'<td class="quiet" title="ASR 33[^"]*">33</td>', page)


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


def test_curves_are_drawn_for_every_family_that_has_them(redteam_page):
    results = whole() | {"summary": None}
    groups = redplots.panels(results["rows"], results["families"])
    shown = {group["family"]: len(group["panels"]) for group in groups}
    assert shown == {"stale": 2, "query": 2, "white-box": 1, "bit-flips": 2, "adaptive": 1}
    (query,) = [group for group in groups if group["family"] == "query"]
    labels = [line["label"] for line in query["panels"][0]["lines"]]
    assert labels[0] == "generated, no rotation"
    assert labels[-1] == "frozen, no rotation"
    assert query["controls"][0]["title"].endswith("noise")
    stale = next(group for group in groups if group["family"] == "stale")["panels"][0]
    drawn = {row["target"] for row in results["rows"] if row["family"] == "stale"}
    assert [line["label"] for line in stale["lines"]] == [t for t in redplots.TARGETS if t in drawn]
    assert parse(redteam_page).tags.count("svg") == 5 + 8 + 2


def test_more_lines_than_can_be_told_apart_get_panels_of_their_own():
    results = whole() | {"summary": None}
    row = picked(results, family="adaptive")[0]
    rows = [row | {"attack": f"draws, variant {i}"} for i in range(11)]
    (group,) = redplots.panels(rows, results["families"])
    assert [len(panel["lines"]) for panel in group["panels"]] == [8, 3]


def test_points_without_a_value_are_left_out(tmp_path):
    results = whole() | {"summary": None}
    row = picked(results, family="adaptive")[0]
    row["extra"]["curve"].append({"draws": 200, "value": None})
    drawn(results, tmp_path)
    row["extra"]["curve"] = [{"draws": 200, "value": None}]
    assert "curves-adaptive" not in drawn(results, tmp_path)


def test_the_same_results_give_the_same_bytes(redteam_page, tmp_path):
    assert drawn(whole(), tmp_path) == redteam_page
    assert report.markdown(whole()) == report.markdown(whole())


@pytest.mark.parametrize("made", [lambda r: report.render_results(r, Path("x")), report.markdown])
def test_results_of_another_version_are_refused(results, made):
    with pytest.raises(G2DError, match=r"g2d-redteam-0.*run `g2d attack` again"):
        made(results | {"format": "g2d-redteam-0"})


# --- Markdown ---


def cells(line):
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_the_markdown_tables_are_well_formed(results):
    hostile = "a | b\n`c` <script> *d* [e](javascript:f) \\"
    results["rows"][0] |= {"note": hostile, "threat": hostile}
    text = report.markdown(results)
    tables = [block for block in re.split(r"\n\n+", text) if block.startswith("|")]
    assert len(tables) == len(results["families"]) + 1
    for table in tables:
        lines = table.strip().split("\n")
        assert set(cells(lines[1])) == {" --- "}
        assert {len(cells(line)) for line in lines} == {len(cells(lines[0]))}
    rows = sum(len(table.strip().split("\n")) - 2 for table in tables[:-1])
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


def test_bit_flips_that_reach_the_unseen_are_not_hidden(results):
    row = picked(results, family="bit-flips", target="generated")[1]
    later = row | {"kind": "bit-flips-later"}
    later["value"] = {"value": 0.4, "low": 0.3, "high": 0.5, "n": 100}
    joint = row | {"kind": "bit-flips-joint", "threat": "flips found jointly"}
    joint["value"] = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 100}
    kept = row | {"kind": "bit-flips-kept-secret-order", "threat": "in secret order"}
    kept["value"] = {"value": 0.0, "low": 0.0, "high": 0.1, "n": 100}
    results["rows"] = [kept, *results["rows"], joint, later]
    said = {label: text.replace("\u00a0", " ") for label, text in told(results).items()}
    assert "cost the next one 1 % and later ones 40 %." in said["What rotation buys"]
    assert "on several at once cost unseen ones 70 %." in said["What it does not"]


def test_the_most_successful_stale_attack_is_told_beside_the_joint_one(results):
    row = picked(results, family="stale", target="generated")[0]
    row["value"], row["harm"] = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 100}, 0.6
    assert "try (reads one exposed generation): 60" in told(results)["What rotation buys"]


def test_rows_from_before_the_key_are_drawn_and_the_answer_says_what_to_do(results, tmp_path):
    for row in results["rows"]:
        del row["kind"]
    seen = words(drawn(results, tmp_path))
    assert "older than the keys by which rows are told apart; run `g2d attack` again" in seen
    assert "The threat matrix" in seen
    assert report.markdown(results).count("\n| ") > len(results["rows"])


def test_words_select_no_row(results):
    """Whatever a threat and its attack are called, the answer is the same."""
    before = told(results)
    for row in results["rows"]:
        if row["family"] != "stale":  # names one of them
            row["threat"] = f"renamed {row['threat'][::-1]}"
    assert told(results) == before
