"""What `[vault] keep` gives up: gates, guidance and the red team do without, and say so."""

from __future__ import annotations

import pytest

import g2d
from g2d.errors import VaultError
from g2d.redteam.chains import _generated
from g2d.settings import Settings
from g2d.vault.verify import verify


def test_a_defence_goes_on_without_the_weights_of_its_old_generations(defence):
    path, settings = defence.vault.path, Settings.from_toml(defence.vault.settings_text)
    few = {"vault__keep": 1, "gates__history": 1, "guidance__memory": 1,
           "gates__accuracy_drop": 1.0, "gates__class_drop": 1.0,
           "gates__stale_asr": 1.0}  # fmt: skip
    defence.vault.write_settings(settings.override(**few).to_toml())
    defence.close()
    with g2d.Defence.open(path) as again:
        again.generate(2)
        assert again.vault.exposures() == [1, 2, 3]
        assert again.vault.retired == 1  # gates and guidance still read 2 and 3
        assert again.exposed() == [2, 3]
        assert [network.label for network in _generated(again).networks] == ["2", "3"]
        with pytest.raises(VaultError, match="generation 1 is retired"):
            again.vault.read_generation(1)
    assert verify(path, patience=0) == []
