"""A rule and an attack of one's own, the example of docs/extending.md; no torch."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from g2d.attacks.byzantine import Seen, find_attack
from g2d.errors import SettingsError
from g2d.settings.federated import FederatedSettings
from g2d.training.federated.aggregation import Aggregation, Around
from places import example


@pytest.fixture
def midpoint(tmp_path, monkeypatch):
    """The example as a module in a file of its own."""
    text = example("An aggregation rule, and a malicious client")
    (tmp_path / "midpoint.py").write_text(text + "\nWRONG = 3\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "midpoint", raising=False)
    yield
    del sys.modules["midpoint"]


def test_the_example_of_the_page_runs(midpoint):
    given = FederatedSettings(clients=8, f=2, rule="midpoint:RULE", mix=False, clip=0.0)
    rule, around = Aggregation.of(given), Around(2, np.zeros(3, np.float32))
    X = np.arange(24, dtype=np.float32).reshape(8, 3)
    np.testing.assert_array_equal(rule(X, around), X[2:6].mean(0))
    seen = Seen(X[:6], 2, lambda rows: rule(rows, around))
    assert seen.moved(find_attack("midpoint:ATTACK").craft(seen)) > 0
    with pytest.raises(SettingsError, match=r"needs n >= 2f \+ 2 = 10"):
        Aggregation.of(FederatedSettings(clients=9, f=4, rule="midpoint:RULE"))


def test_what_is_no_rule_and_no_attack_is_told(midpoint):
    for name in ("midpoint:WRONG", "midpoint:NONE"):
        with pytest.raises(SettingsError, match="aggregation rule 'midpoint:"):
            Aggregation.of(FederatedSettings(rule=name))
        with pytest.raises(SettingsError, match="attack 'midpoint:"):
            find_attack(name)


def test_a_rule_that_gives_no_update_is_told(midpoint):
    import midpoint as own

    rule = Aggregation(own.Rule("odd", lambda X, _: X, 1, 1, "this test"), 0, 0.0, False)
    with pytest.raises(SettingsError, match=r"gave shape \(2, 3\) of updates \(2, 3\)"):
        rule(np.ones((2, 3), np.float32), Around(0, np.zeros(3, np.float32)))
