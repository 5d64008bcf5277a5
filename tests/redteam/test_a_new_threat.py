"""A threat of one's own, the example of docs/extending.md: run, kept, told with no other edit."""

import importlib
import json
import sys

import pytest

from g2d.core.engine import SerialEngine
from g2d.errors import SettingsError
from g2d.redteam import attack
from g2d.redteam.cache import code_version
from g2d.report import matrix, page
from g2d.service.http.redteam_summary import compact
from pages import words
from places import example

pytest.importorskip("art")
pytest.importorskip("pyautoattack")


@pytest.fixture
def coin(tmp_path, monkeypatch):
    """The example as a module in a file of its own."""
    (tmp_path / "coin.py").write_text(example("A threat"), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "coin", raising=False)
    yield importlib.import_module("coin")
    del sys.modules["coin"]


def run(vault, *threats, **more):
    return attack(vault, threats=threats, quick=True, engine=SerialEngine(), **more)


def test_a_new_threat_is_run_kept_and_told_everywhere(coin, vault, tmp_path):
    results = run(vault, coin.THREAT)
    rows = {row["target"]: row for row in results["rows"]}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["kind"] for row in rows.values()} == {"coin-signs"}
    assert rows["generated"]["value"]["value"] <= 0.5
    assert run(vault, coin.THREAT)["reused"] == 2

    page.render_results(results, tmp_path / "page.html")
    drawn = (tmp_path / "page.html").read_text("utf-8")
    seen = words(drawn)
    assert "Random signs" in seen
    assert "Does mere noise flip anything?" in seen
    assert 'id="curves-coin"' in drawn
    assert "Low is good." in seen
    assert "--threat coin" in seen
    (line,) = matrix.matrix(results["rows"])
    assert (line.kind, set(line.rows)) == ("coin-signs", {"generated", "frozen"})
    assert "Does mere noise flip anything?" in page.markdown(results)
    (best,) = json.loads(json.dumps(compact(results)))["best"]
    assert best["title"] == "Random signs"
    assert set(best["cells"]) == {"generated", "frozen"}


def test_rows_of_other_code_are_not_reused(coin, tmp_path):
    before = code_version("coin")
    assert code_version("coin") == before
    (tmp_path / "coin.py").write_text(example("A threat").replace("/ 2", "/ 3"), "utf-8")
    code_version.cache_clear()
    assert code_version("coin") != before
    code_version.cache_clear()
    sys.modules["coin"].__file__ = None  # as in a notebook: nobody knows which code it is
    first = code_version("coin")
    code_version.cache_clear()
    assert code_version("coin") != first


def test_a_threat_on_a_service_needs_cases_for_it(coin, exposed):
    from g2d.redteam import ServiceAddress

    with pytest.raises(SettingsError, match="'coin' cannot be tried on a service"):
        run(exposed, coin.THREAT, service=ServiceAddress("http://127.0.0.1:1", "m"))


def test_two_threats_of_one_name_are_refused(coin, exposed):
    import dataclasses

    other = dataclasses.replace(coin.THREAT, name="stale")
    with pytest.raises(SettingsError, match="two threats are called 'stale'"):
        run(exposed, "stale", other)
    with pytest.raises(SettingsError, match="threat 'stale' plans cases of coin"):
        run(exposed, other)
