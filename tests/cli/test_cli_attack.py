"""The commands `g2d attack` and `g2d report`, and `g2d.attack`, which is the first of them."""

import pytest

import g2d
from commands import fail, succeed


@pytest.mark.slow
def test_attack_and_report(tiny_vault, tmp_path, serial):
    """`g2d attack` runs a family, says where the results are; `g2d report` makes the pages."""
    pytest.importorskip("art")
    out = tmp_path / "red"
    said = succeed("attack", tiny_vault, "--quick", "--threat", "universal", "--out", out).output
    assert "results.json" in said
    assert "smoke test" in said
    succeed("report", tiny_vault, "--out", out)
    assert "<html" in (out / "report.html").read_text("utf-8")
    assert "| " in (out / "table.md").read_text("utf-8")


def test_report_without_results(tiny_vault, tmp_path):
    assert "run `g2d attack` first" in fail("report", tiny_vault, "--out", tmp_path)


def test_attack_of_an_unknown_threat(tiny_vault):
    assert "Did you mean 'query'?" in fail("attack", tiny_vault, "--threat", "querry")
    with pytest.raises(g2d.G2DError, match="Did you mean 'query'"):
        g2d.attack(tiny_vault, threats=["querry"])
