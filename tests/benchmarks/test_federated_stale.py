"""Federated generations beside central ones: what is told is of the right columns."""

import pytest

pytest.importorskip("psutil")

from benchmarks.federated import stale


def rates(value, n=100):
    return [{"value": value, "low": 0.0, "high": 1.0, "n": n}] * 2


def test_both_vaults_stand_beside_each_other_and_beside_had_it_stayed():
    row = {"joint": rates(0.1), "stayed": rates(0.4), "white-box": rates(0.5)}
    other = {"joint": rates(0.2), "stayed": rates(0.4), "white-box": rates(0.6)}
    rows = {
        stale.FEDERATED: row | {"clean": [0.97, 0.99], "cpu_seconds": 60.0},
        stale.CENTRAL: other | {"clean": [0.99, 0.99], "cpu_seconds": 60.0},
    }
    first, second = stale.targets([{"rows": rows}])
    assert first[2].startswith("10.0 (")
    assert "against 20.0 (" in first[2]
    assert second[2] == "0.25 against 0.50"
    told = stale.table([{"rows": rows}]).splitlines()
    assert "| federated | 98.00 (worst 97.00) | 10.0 (" in told[2]
    assert "| central | 99.00 (worst 99.00) | 20.0 (" in told[3]


def test_the_federated_vault_is_the_one_that_the_backdoor_is_followed_in(tmp_path):
    """So that a population which is there already is gone on with."""
    given = stale.flags().parse_args(["--runs", str(tmp_path), "--members", "2"])
    assert stale.folder(given, 3, stale.FEDERATED).name == "federated-digits-3-0-centred-clipping"
    assert stale.folder(given, 3, stale.CENTRAL) != stale.folder(given, 3, stale.FEDERATED)
