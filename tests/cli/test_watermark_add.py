"""`g2d watermark add`: what marking an old vault has cost is said, or what is missing for it."""

import re

import pytest

from commands import fail, succeed
from g2d.core.engine import SerialEngine
from g2d.defence import watermarking
from g2d.protect.watermark import WatermarkKey
from g2d.settings import Settings
from g2d.vault.vault import Vault
from marks import few_committed, with_mark


@pytest.fixture
def old(vault, watermark_key, monkeypatch, digits):
    monkeypatch.setattr("g2d.cli.watermark_add.make_engine", lambda *_: SerialEngine())
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_vault(opened.settings_text)
        opened.write_settings(with_mark(settings, watermark_key).to_toml())
        key = WatermarkKey.read(watermark_key)
        opened.write_commitment(few_committed(key, digits, opened.identity))
    return vault


def test_add_says_what_it_cost_and_what_comes_next(old, monkeypatch):
    """The marking itself is tested beside the defence: here is what is asked for and told."""
    assert "`g2d watermark add` marks it" in fail("population", old)
    asked = []

    def marked(task, source, vault, settings, engine, progress, steps):
        asked.append((task.name, vault.path, settings.watermark.sets, steps))
        return told.pop()

    told = [watermarking.Marked(0, 9), watermarking.Marked(4, 9, 3.2, 0.981, 0.979, 0.004, 0.97)]
    monkeypatch.setattr(watermarking, "mark_vault", marked)
    said = succeed("watermark", "add", old, "--steps", "9").stdout
    assert "4 members were marked in 9 steps each, 3 CPU s" in said
    assert "hit by 97.0% or more" in said
    assert re.search(r"98\.10% before, 97\.90% after \(means\); one member lost 0\.40%", said)
    assert f"Generation 1 and those before it carry none. Next: g2d generate {old}" in said
    assert "carries the watermark already" in succeed("watermark", "add", old).stdout
    assert asked == [("digits", old, 2, 9), ("digits", old, 2, watermarking.STEPS)]


def test_without_a_key_it_says_how_to_get_one(vault):
    assert "`g2d watermark new` makes its key" in fail("watermark", "add", vault)
