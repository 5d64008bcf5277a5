"""Results to draw, and pages taken apart, for tests of the report."""

import html
import json
import re
from html.parser import HTMLParser

from g2d.report import page as report
from places import DATA

RESULTS = DATA / "results.json"


def whole():
    return json.loads(RESULTS.read_text("utf-8"))


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


def parse(page):
    tags = Tags()
    tags.feed(page)
    return tags


def words(page):
    """What a reader sees, on one line."""
    text = re.sub(r"<(style|svg).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def picked(results, **wanted):
    return [r for r in results["rows"] if all(r[key] == value for key, value in wanted.items())]


def told(results):
    return {line["label"]: line["text"] for line in report.answer(results)}


def cells(line):
    return re.split(r"(?<!\\)\|", line)[1:-1]


def self_contained(page):
    parsed = parse(page)
    assert parsed.links
    assert all(link.startswith(("#", "data:")) for link in parsed.links)
    assert not {"script", "link", "iframe", "base", "object", "embed"} & set(parsed.tags)
    style = "".join(re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL))
    assert "@import" not in style
    assert re.findall(r"url\((?!#)", page) == []
    # What is left of http:// in tags are names of XML namespaces, which nothing fetches, and what
    # a pointer is told: the address of a service that was attacked.
    tags = "".join(re.sub(r' title="[^"]*"', "", tag) for tag in re.findall(r"<[^>]*>", page))
    for found in re.findall(r"https?://[^\"'\s<>]*", tags):
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
