"""What decides whether to buy stands in the report and in `g2d show`; what is missing is said."""

import json

import pytest

from commands import succeed
from g2d.report import page
from g2d.report.controls import NOT_MEASURED, TITLES, controls, measured
from pages import words


def rate(value, n=200):
    return {"value": value, "low": max(0, value - 0.05), "high": value + 0.05, "n": n}


def row(chain, kind, value):
    return {"chain": chain, "kind": kind, "value": rate(value) if value is not None else None,
            "clean_accuracy": rate(0.97, 250)}  # fmt: skip


RESULTS = {
    "format": "g2d-redteam-1",
    "quick": True,
    "chains": {
        "draws": {"networks": 8, "cost": 3.84, "note": ""},
        "hardened": {"networks": 1, "cost": 0.52, "note": ""},
    },
    "rows": [
        row("draws", "stale-single", 0.1),
        row("draws", "stale-joint", 0.2),
        row("draws", "stale-joint", 0.3),
        row("hardened", "stale-single", 0.08),
        row("hardened", "stale-joint", None),
        row("generated", "stale-single", 0.5),
    ],
}


def test_each_control_has_its_strongest_attack_its_accuracy_and_its_cost():
    fresh, hardened, rival = controls(RESULTS)
    assert list(fresh.values()) == [
        "next generation", "10.0 % [5.0–15.0] of 200", "30.0 % [25.0–35.0] of 200",
        "97.0 % [92.0–102.0] of 250", "3.8",
    ]  # fmt: skip
    assert hardened[TITLES[1]] == "8.0 % [3.0–13.0] of 200"
    assert hardened[TITLES[2]] == NOT_MEASURED  # its row holds no value
    assert hardened[TITLES[4]] == "0.5"
    assert set(list(rival.values())[1:]) == {NOT_MEASURED}
    assert not measured(controls(None))


DAMAGED = ("{", '{"format": "g2d-redteam-1", "rows": [1]}')


@pytest.mark.parametrize("text", [None, json.dumps(RESULTS), *DAMAGED])
def test_a_vault_at_a_glance_shows_them(tiny_vault, tmp_path, text):
    import shutil

    vault = tmp_path / "vault"
    shutil.copytree(tiny_vault, vault)
    if text is not None:
        (vault / "redteam").mkdir()
        (vault / "redteam/results.json").write_text(text)
    said = succeed("show", vault).stdout
    if text == json.dumps(RESULTS):
        assert "made on exposed generations, by a quick run: no evidence" in said
        assert "hardened retraining (FGSM at eps/2, same seed and data)" in said
        assert "30.0 % [25.0–35.0] of 200" in said
    else:
        assert "controls     not measured (hardened retraining, retraining on exposed)" in said
        assert "--threat stale`" in said
        assert ("cannot be read" in said) == (text is not None)


def test_the_report_prints_them(results, tmp_path):
    results["rows"] += [r | {k: results["rows"][0][k] for k in results["rows"][0] if k not in r}
                        for r in RESULTS["rows"][3:4]]  # fmt: skip
    results["chains"] = dict(results.get("chains", {})) | RESULTS["chains"]
    page.render_results(results, tmp_path / "report.html")
    seen = words((tmp_path / "report.html").read_text())
    assert "What decides whether to buy" in seen
    assert "8.0 % [3.0–13.0] of 200" in seen
    assert "retraining on the exposed attacks" in seen
    assert "### What decides whether to buy" in page.markdown(results)
