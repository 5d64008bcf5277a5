"""The table of the backdoor scan says what its rows say."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.federated import scan


def test_rows_are_kept_one_by_one_and_told_beside_the_clean_networks(tmp_path, monkeypatch, capsys):
    asked = []

    def measured(task, given, kind, share, index):
        asked.append((kind, share, index))
        ratio = 0.8 if not share else 0.3 + 0.4 * index
        return {"ratio": ratio, "index": 5 * share + index, "named": bool(share), "sizes": [],
                "asr": share, "accuracy": 0.9, "gate": 0.9}  # fmt: skip

    monkeypatch.setattr(scan, "measured", measured)
    monkeypatch.setattr(scan, "commit", lambda: "one")
    words = ["--kinds", "patch", "--shares", "0.5", "--out", str(tmp_path)]
    scan.main([*words, "--count", "1"])
    before = len(asked)
    scan.main([*words, "--count", "2"])
    assert asked[before:] == [("clean", 0.0, 1), ("patch", 0.5, 1)]  # what is there is not again
    told = capsys.readouterr().out
    assert "| clean | 0.00 to 0.00 | 0.900 | 0.80 to 0.80 | 0 of 2 | 0 of 2 | 0 of 2 | – |" in told
    line = "| patch 0.5 | 0.50 to 0.50 | 0.900 | 0.30 to 0.70 | 1 of 2 | 1 of 2 | 2 of 2 | 1.00 |"
    assert line in told
    kept = json.loads((tmp_path / "federated-scan-digits.json").read_text())
    assert set(kept["rows"]) == {"clean", "patch 0.5"}
    with pytest.raises(SystemExit, match="give the same flags"):
        scan.main([*words, "--steps", "3"])


def test_triggers_of_many_classes_lie_apart_and_change_few_pixels(digits):
    x, bounds = digits.splits.test.x[:3], digits.bounds
    where = [(scan.stamp(x, scan.MANY, k, bounds) != x).any(0).any(0) for k in range(6)]
    assert all(0 < int(one.sum()) <= 4 for one in where)
    assert len({one.numpy().tobytes() for one in where}) == 6
    faint = scan.stamp(x, scan.FAINT, 0, bounds)
    assert float((faint - x).abs().max()) <= 0.2 * (bounds[1] - bounds[0]) + 1e-6
    source = torch.Generator().manual_seed(0)
    poisoned = scan.planted(digits, scan.MANY, 0.3, source).splits.train
    changed = (poisoned.x != digits.splits.train.x).flatten(1).any(1)
    assert changed.float().mean() > 0.2
    assert set(poisoned.y[changed].tolist()) == set(range(6))


@pytest.mark.parametrize(
    ("clean", "bad", "wanted"), [([1.0], [2.0], 1.0), ([1.0], [1.0], 0.5), ([2.0], [1.0], 0.0)]
)
def test_auc_counts_pairs(clean, bad, wanted):
    assert scan.auc(clean, bad) == wanted
