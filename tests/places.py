"""Where things lie, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
DATA = TESTS / "data"
SHARED = ROOT.parent / "shared" / "data"


def example(heading: str, page: str = "docs/extending.md") -> str:
    """The Python code under one `## heading` of a page, its blocks joined."""
    import re

    text = (ROOT / page).read_text("utf-8")
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section, f"{page} has no section {heading!r}"
    blocks = re.findall(r"^```python\n(.*?)^```", section.group(1), re.M | re.S)
    assert blocks, f"section {heading!r} of {page} shows no Python"
    return "\n".join(blocks)
