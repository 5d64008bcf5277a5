"""What a round costs is measured of real rounds, kept rule by rule, and told on the page."""

from __future__ import annotations

import json

import pytest

from benchmarks.federated import exchange, shares, tables
from g2d.training.federated.form import Form

FORM = Form({"w": (4, 3), "b": (3,)})


def test_a_round_of_ours_and_of_theirs_carries_the_same_parameters(tmp_path):
    pytest.importorskip("nvflare", reason="g2d[federated] is not installed")
    given = exchange.flags().parse_args(["--clients", "5", "--f", "1", "--rounds", "2"])
    found = exchange.measured(FORM, given, "median")
    for name in ("ours", "theirs"):
        assert found[name]["bytes"] > 2 * given.clients * 4 * FORM.size
        assert found[name]["seconds"] >= 0


def test_rules_are_kept_one_by_one_and_told(tmp_path, monkeypatch, capsys):
    asked = []

    def measured(form, given, rule):
        asked.append(rule)
        return {"ours": {"seconds": 0.011, "bytes": 90}, "theirs": {"seconds": 0.01, "bytes": 100}}

    monkeypatch.setattr(exchange, "measured", measured)
    monkeypatch.setattr(exchange, "commit", lambda: "one")
    words = ["--out", str(tmp_path), "--rules", "mean"]
    exchange.main(words)
    exchange.main([*words, "median"])
    assert asked == ["mean", "median"]
    told = capsys.readouterr().out
    assert "| server CPU of a round, mean | ≤ 1.2 times NVFlare's FedAvg | 11.0 ms, 1.10 " in told
    assert "0.900 times" in told
    kept = json.loads((tmp_path / "federated-exchange-digits.json").read_text())
    assert set(kept["rows"]) == {"mean", "median"}


def test_every_table_says_what_is_not_measured_yet(tmp_path):
    made = tables.made(tmp_path)
    assert set(made) == set(tables.TABLES)
    assert all("not measured yet" in text for text in made.values())


def test_a_clients_process_finds_its_share_by_name(monkeypatch):
    told = {"task": "digits", "data": "", "clients": 4, "alpha": 0.0, "seed": 0}
    monkeypatch.setenv(shares.VARIABLE, json.dumps(told))
    own = [getattr(shares, f"client_{k:02d}")().splits for k in range(4)]
    sizes = [len(splits.train) for splits in own]
    assert max(sizes) - min(sizes) <= 1
    assert len({splits.train.x[0].numpy().tobytes() for splits in own}) == 4
    with pytest.raises(AttributeError):
        shares.someone  # noqa: B018
