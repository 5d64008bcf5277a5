"""The table of the backdoor scan says what its rows say."""

from __future__ import annotations

import json

import pytest

from benchmarks.federated import scan


def test_rows_are_told_beside_the_clean_networks(tmp_path, monkeypatch, capsys):
    def measured(task, given, share, index):
        ratio = 0.8 if not share else 0.3 + 0.4 * index
        return {"ratio": ratio, "index": 5 * share + index, "named": bool(share), "sizes": [],
                "asr": share, "accuracy": 0.9, "gate": 0.9}  # fmt: skip

    monkeypatch.setattr(scan, "measured", measured)
    path = tmp_path / "scan.json"
    scan.main(["--count", "2", "--shares", "0", "0.5", "--out", str(path)])
    told = capsys.readouterr().out
    assert "| 0 | 0.00 to 0.00 | 0.80 to 0.80 | 0 of 2 | 0 of 2 | 0 of 2 | – |" in told
    assert "| 0.5 | 0.50 to 0.50 | 0.30 to 0.70 | 1 of 2 | 1 of 2 | 2 of 2 | 1.00 |" in told
    assert set(json.loads(path.read_text())["rows"]) == {"0", "0.5"}


@pytest.mark.parametrize(
    ("clean", "bad", "wanted"), [([1.0], [2.0], 1.0), ([1.0], [1.0], 0.5), ([2.0], [1.0], 0.0)]
)
def test_auc_counts_pairs(clean, bad, wanted):
    assert scan.auc(clean, bad) == wanted
