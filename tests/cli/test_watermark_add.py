"""`g2d watermark add`: an old vault is marked, and what that cost is said."""

import re

import pytest

from commands import fail, succeed
from g2d.core.engine import SerialEngine
from g2d.settings import Settings
from g2d.vault.vault import Vault
from marks import with_mark


@pytest.fixture
def old(vault, watermark_key, monkeypatch):
    monkeypatch.setattr("g2d.cli.watermark.make_engine", lambda *_: SerialEngine())
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_vault(opened.settings_text)
        opened.write_settings(with_mark(settings, watermark_key).to_toml())
    return vault


def test_add_says_what_it_cost_and_what_comes_next(old):
    assert "`g2d watermark add` marks it" in fail("population", old)
    said = succeed("watermark", "add", old, "--steps", "100")
    assert "4 members were marked in 100 steps each" in said.stdout
    assert re.search(r"accuracy on the gate split: [\d.]+% before, [\d.]+% after", said.stdout)
    assert f"Generation 1 and those before it carry none. Next: g2d generate {old}" in said.stdout
    assert "marking: 4 of 4" in said.stderr
    assert "carries the watermark already" in succeed("watermark", "add", old).stdout
    made = succeed("generate", old, "--seed", "1").stdout
    assert re.search(r"watermark, least share of a set [\d.]+% \(limit 90", made)


def test_without_a_key_it_says_how_to_get_one(vault):
    assert "`g2d watermark new` makes its key" in fail("watermark", "add", vault)
