"""What tests of the report share: results, a summary, and the page drawn once."""

import pytest

from pages import drawn, whole


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


@pytest.fixture(scope="session")
def redteam_page(tmp_path_factory):
    return drawn(whole(), tmp_path_factory.mktemp("page"))
