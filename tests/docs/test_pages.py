"""README stays short, every link of a page leads somewhere, tables are what the JSON says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from places import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What a heading of a page may be linked as."""
    heads = re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), re.M)
    plain = [re.sub(r"[^\w\s-]", "", head.lower()) for head in heads]
    return {re.sub(r"\s+", "-", head.strip()) for head in plain}


def test_readme_has_few_numbers():
    text = LINK.sub("]()", README.read_text("utf-8"))
    numbers = re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*", text)
    assert len(numbers) <= 25, numbers


def test_readme_has_short_bullets():
    bullets = re.findall(r"^[-*] .*(?:\n  .*)*", prose(README.read_text("utf-8")), re.M)
    assert bullets
    assert [b for b in bullets if len(b) > 200] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    broken = []
    for target in LINK.findall(prose(page.read_text("utf-8"))):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_site_lists_every_page_and_no_other():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = re.findall(r"([\w/.-]+\.md)$", text.split("\nnav:\n")[1], re.M)
    assert sorted(listed) == sorted(str(p.relative_to(ROOT / "docs")) for p in PAGES[1:])


def test_pages_of_the_site_link_to_nothing_outside_docs():
    outside = [
        (page.name, target)
        for page in PAGES[1:]
        for target in LINK.findall(prose(page.read_text("utf-8")))
        if not re.match(r"\w+:|#", target)
        and ROOT / "docs" not in (page.parent / target.partition("#")[0]).resolve().parents
    ]
    assert outside == []


def test_tables_are_those_of_the_committed_results():
    pytest.importorskip("psutil")
    from benchmarks import tables
    from benchmarks.common.tables import MARK

    made = tables.blocks()
    texts = [page.read_text("utf-8") for page in PAGES]
    shown = {match["name"]: match[0] for text in texts for match in MARK.finditer(text)}
    stale = [
        name
        for name, text in made.items()
        if shown.get(name) != f"<!-- {name} -->\n\n{text}\n\n<!-- /{name} -->"
    ]
    assert stale == [], "run `python -m benchmarks.tables`"


def test_the_picture_of_the_flow_is_what_its_script_draws():
    script = ROOT / "docs" / "pictures" / "draw_flow.py"
    space: dict[str, object] = {"__name__": "drawing", "__file__": str(script)}
    exec(compile(script.read_text("utf-8"), str(script), "exec"), space)
    assert script.with_name("flow.svg").read_text("utf-8") == space["drawing"]()  # type: ignore[operator]
