"""The page is complete, self-contained and written whole or not at all."""

import importlib.util
import re
import struct
from html.parser import HTMLParser

import pytest

from g2d import report
from g2d.errors import G2DError


def rate(value, n=100):
    return {"value": value, "low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05), "n": n}


def gate(passed=True):
    return {"gate": "finite", "passed": passed, "value": 0.0, "limit": 0.0, "reason": ""}


def generation(number):
    base = number == 1
    return {
        "number": number,
        "origin": "base" if base else "generated",
        "clean_accuracy": rate(0.96),
        "gates": [] if base else [gate()],
        "attempts": 1,
        "cpu_seconds": None if base else 0.5,
        "weights": f"{number:064x}",
    }


@pytest.fixture
def summary():
    table = {"what": "No rotation <&>", "clean accuracy": "96.0 %", "ASR": "88 %", "meaning": "m"}
    grey = [[0, 128], [255, 64]]
    item = {"label": 7, "exposed": 2, "live": 7, "clean": grey, "attacked": grey}
    return {
        "task": "digits",
        "headline": [{"label": f"label {i}", "text": f"text {i}"} for i in range(3)],
        "table": [table, table | {"what": "White-box"}],
        "numbers": {
            "frozen_asr": 0.88, "white_box_asr": 0.54, "frozen_clean_accuracy": 0.96,
            "clean_accuracy_worst": 0.95, "test_examples": 100, "gate_examples": 50,
            "eps": 0.15, "rotations": 2, "rejected": 1,
        },
        "rows": [{"attack": "PGD-20"}],
        "generations": [generation(1), generation(2), generation(3)],
        "rejected": [{"for": 2, "attempt": 1, "reasons": ["class 3 lost 9 %", "too near"]}],
        "matrix": [
            {"crafted": c, "scored": s, **rate(0.5 if c == s else 0.2)}
            for c in (1, 2, 3) for s in range(c, 4)
        ],
        "age": [{"age": age, **rate(0.5 - 0.1 * age)} for age in range(3)],
        "distances": {
            "aligned": True, "limit": 0.02,
            "generations": [
                {"number": k, "previous": 1.0, "nearest_exposed": 0.5, "nearest_member": 0.7}
                for k in (2, 3)
            ],
        },
        "images": {"exposed": 2, "live": 3, "items": [item]},
        "latents": {
            "explained": [0.4, 0.2],
            "members": [{"x": 0.1 * i, "y": 1.0, "basin": i % 3} for i in range(9)],
            "generations": [{"x": float(k), "y": 0.0, "number": k} for k in (1, 2, 3)],
        },
        "settings": {}, "settings_toml": '[task]\nname = "digits"\n',
        "digests": {"population": "p" * 64, "generator": "g" * 64, "generations": {"1": "w" * 64}},
        "versions": {"g2d": "0"}, "hardware": {"cpu_count": 2}, "seed": 0,
        "seconds": {"population": 1.5},
    }  # fmt: skip


class Tags(HTMLParser):
    """Collects tags, ids and what refers to something."""

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.links, self.images = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]
        if tag == "img":
            self.images.append(values.get("alt"))


@pytest.fixture
def page(summary, tmp_path):
    path = tmp_path / "report.html"
    report.render(summary, path)
    return path.read_text(encoding="utf-8")


def parse(page):
    tags = Tags()
    tags.feed(page)
    return tags


def test_nothing_is_loaded_from_outside(page):
    tags = parse(page)
    assert tags.links
    assert all(link.startswith(("#", "data:")) for link in tags.links)
    assert not {"script", "link", "iframe", "base", "object", "embed"} & set(tags.tags)
    style = "".join(re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL))
    assert "@import" not in style
    assert re.findall(r"url\((?!#)", page) == []
    # What is left of http:// are names of XML namespaces, which nothing fetches.
    for found in re.findall(r"https?://[^\"'\s<>]*", page):
        assert found in ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")


def test_the_page_holds_every_part(page):
    tags = parse(page)
    assert tags.tags.count("svg") == 5
    assert page.count('role="img" aria-label=') == 5
    assert tags.tags.count("caption") == tags.tags.count("table") == 3
    assert tags.tags.count("figcaption") == tags.tags.count("figure") == 5
    assert tags.images == ["test image of class 7", "the same image, attacked"]
    for text in ("text 0", "text 2", "too near", "p" * 64, "name = &#34;digits", "PGD-20"):
        assert text in page
    assert "No rotation &lt;&amp;&gt;" in page


def test_ids_are_unique_and_references_resolve(page):
    tags = parse(page)
    assert len(tags.ids) == len(set(tags.ids))
    targets = re.findall(r"url\(#([^)]+)\)", page) + [x[1:] for x in tags.links if x[0] == "#"]
    labelled = re.findall(r'aria-labelledby="([^"]+)"', page)
    assert set(targets + labelled) <= set(tags.ids)


def test_plots_follow_the_colours_of_the_page(page):
    assert "#0a0b" not in page
    assert "#0a0c" not in page
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", page))
    defined = set(re.findall(r"(--[a-z0-9-]+):", page))
    assert used <= defined
    assert "prefers-color-scheme: dark" in page


def test_the_same_summary_gives_the_same_page(summary, page, tmp_path):
    report.render(summary, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_a_task_without_images_and_rejections_is_reported_too(summary, tmp_path):
    less = summary | {"images": {"items": []}, "rejected": []}
    report.render(less, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "No candidate was rejected" in text


def test_colour_images_are_drawn(summary, tmp_path):
    pixels = [[[255, 0, 0], [0, 255, 0]]]
    item = summary["images"]["items"][0] | {"clean": pixels, "attacked": pixels}
    path = tmp_path / "r.html"
    report.render(summary | {"images": summary["images"] | {"items": [item]}}, path)
    assert "data:image/png" in path.read_text(encoding="utf-8")


def test_the_picture_has_the_size_that_the_readme_wants(summary, tmp_path):
    report.save_hero(tmp_path / "hero.png", summary)
    data = (tmp_path / "hero.png").read_bytes()
    assert struct.unpack(">II", data[16:24]) == (1600, 700)


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_a_missing_library_is_told_with_what_to_install(summary, tmp_path, monkeypatch, missing):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == missing else real(n))
    with pytest.raises(G2DError, match=rf"{missing}.*pip install 'g2d\[report\]'"):
        report.render(summary, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    report.write(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", full)
    with pytest.raises(G2DError, match="No space left"):
        report.write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_that_is_not_there_is_told(summary, tmp_path):
    with pytest.raises(G2DError, match="cannot write"):
        report.write(tmp_path / "no" / "r.html", "x")
    with pytest.raises(G2DError, match="cannot write"):
        report.save_hero(tmp_path / "no" / "hero.png", summary)
