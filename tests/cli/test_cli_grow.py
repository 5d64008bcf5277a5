"""`g2d grow`: what it says, and whom it leaves the writing to."""

from __future__ import annotations

import shutil

import pytest

import g2d.defence.growing as growing
from commands import fail, succeed
from g2d.defence.growing import Grown, TakenBasin
from g2d.errors import SettingsError
from g2d.vault.vault import Vault


@pytest.fixture
def vault(tiny_vault, tmp_path):
    shutil.copytree(tiny_vault, tmp_path / "vault")
    return tmp_path / "vault"


def test_grow_says_what_it_made_and_who_takes_it_up(vault, monkeypatch):
    """The growth itself is tested beside the defence: here is what is asked for and told."""
    asked, taken = [], [TakenBasin(1000, 1), TakenBasin(1001, 2)]

    def made(defence, how):
        asked.append((defence.vault.path, how.members, how.seed, how.anew))
        how.say("basin 1000: its newest member is right on 97.00% of the gate split")
        return Grown(999 + len(asked), 5, 12.4)

    monkeypatch.setattr(growing, "grow", made)
    monkeypatch.setattr(growing, "take_up_basin", lambda _: taken.pop(0))
    said = " ".join(succeed("grow", vault, "--basins", 2, "--members", 5, "--anew").stdout.split())
    assert "its newest member is right on 97.00% of the gate split" in said
    assert "Basin 1000: 5 members, 12 CPU s of training." in said
    assert "Basin 1001 was grown; basins that nobody has seen: 2." in said
    assert "resting = false has candidates begin in any basin" in said
    assert f"Next: g2d generate {vault}" in said
    assert asked == [(vault, 5, None, True), (vault, 5, None, False)]
    with Vault.open(vault, write=True):  # a service
        said = " ".join(succeed("grow", vault, "--seed", 3).stdout.split())
    assert "A service is writing" in said
    assert "before the service makes its next generation." in said


def test_a_refusal_is_one_line(vault, monkeypatch):
    def refused(*_):
        raise SettingsError("a basin of 1 member has one start")

    monkeypatch.setattr(growing, "grow", refused)
    assert "a basin of 1 member has one start" in fail("grow", vault, "--members", 1)
    assert "there is no vault at" in fail("grow", vault / "absent")
