"""A benchmark takes a sealed vault that was made elsewhere, and prints what unsealing costs."""

from __future__ import annotations

import pytest

from g2d.protect.sealing import make_custodian
from g2d.vault.sealing.changing import seal
from g2d.vault.vault import Vault

pytest.importorskip("cryptography")
pytest.importorskip("psutil")


def test_a_sealed_vault_of_another_state_is_copied_and_opens(tmp_path, monkeypatch):
    from benchmarks.serving.process import copied

    monkeypatch.setenv("G2D_STATE", str(tmp_path / "its own"))
    monkeypatch.delenv("G2D_CUSTODIAN", raising=False)
    url = f"file:{tmp_path / 'c.key'}"
    with Vault.create(tmp_path / "vault", "[task]\n") as made:
        made.accept({"weights": b"weights"}, {}, activate=True)
        seal(made, make_custodian(url)[0], url)
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "the benchmark's"))
    with pytest.raises(SystemExit, match="set G2D_CUSTODIAN"):
        copied(tmp_path / "vault", tmp_path / "one")
    monkeypatch.setenv("G2D_CUSTODIAN", url)
    with Vault.open(copied(tmp_path / "vault", tmp_path / "two"), write=True) as opened:
        assert opened.read_generation(1) == b"weights"


def test_the_table_says_the_ratio_of_both_kinds():
    from benchmarks.sealing.swap import rows

    one = {
        "interval": (1.0, 1.2), "rotations": 3, "answered": 1200, "rate": 400.0, "p99_ratio": 1.1,
        "rotating": {"p99_ms": 2.2}, "steady": {"p99_ms": 2.0}, "swap_ms": 1.5,
        "failed": 0, "dropped": 0, "wrong": 0, "out_of_order": 0,
    }  # fmt: skip
    found = rows({"latency": {"plain": one, "sealed": one}})
    assert [row[1] for row in found] == ["–", "0; –", "≤ 1.2", "0; –"]
    assert found[2][2] == "2.20 / 2.00 = 1.10 (1.00–1.20)"
