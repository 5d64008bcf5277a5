"""A population that does not learn its watermark is told so; the built-in one learns it."""

from __future__ import annotations

import pytest

from commands import succeed
from g2d import Defence, Settings, load_task
from g2d.core.engine import SerialEngine
from g2d.errors import PopulationError
from g2d.protect.watermark import InputForm
from g2d.protect.watermark.publishing import publish
from g2d.settings import build
from g2d.tasks.sizes import MARKED, marked_defaults_of


def begun(folder, settings):
    """A vault with a commitment, as `g2d watermark new` leaves it."""
    with Defence.create("digits", folder / "vault", settings) as defence:
        publish(defence.vault, defence.settings, InputForm.of(defence.task), folder / "mark.key")
    return Defence.open(folder / "vault")


def test_a_base_without_the_mark_is_refused_before_members_are_trained(tmp_path, tiny_settings):
    for _ in range(2):  # and again, where it is there already
        with (
            begun(tmp_path, tiny_settings)
            if not (tmp_path / "vault").exists()
            else Defence.open(tmp_path / "vault")
        ) as defence:
            with pytest.raises(PopulationError, match="the base has not learned the watermark"):
                defence.populate(SerialEngine())
            assert not defence.vault.entries("early")
            assert not defence.vault.entries("member")


def test_members_without_the_mark_are_told_once_and_counted(tmp_path, tiny_settings, monkeypatch):
    from g2d.defence import populating

    monkeypatch.setattr(populating, "GIVEN", "base")  # such a base may lack it: forks learn it
    said: list[str] = []
    with begun(tmp_path, tiny_settings) as defence:
        members = defence.settings.population.members
        defence.populate(SerialEngine(), tell=said.append)
    marked = [text for text in said if "watermark" in text]
    assert "member 0 has not learned the watermark" in marked[0]
    assert "[watermark]" in marked[0]
    assert marked[1:] == [f"{members} new members have not learned the watermark"]


def test_a_new_marked_vault_of_digits_learns_the_mark(tmp_path):
    settings = build(Settings, marked_defaults_of(load_task("digits")), "test", stored=True)
    settings = settings.override(task__name="digits", population__members=2, population__basins=1)
    with begun(tmp_path, settings) as defence:
        defence.populate(SerialEngine())
        kept = [*defence.vault.entries("base"), *defence.vault.entries("member")]
        assert [entry.info["watermark"] >= 0.95 for entry in kept] == [True] * 3


def test_watermark_new_takes_what_a_marked_population_needs(tmp_path):
    vault, key = tmp_path / "vault", tmp_path / "mark.key"
    succeed("watermark", "new", vault, "--task", "digits", "--key", key, "--triggers", "32")
    settings = Settings.from_file(vault / "task.toml")
    assert settings.watermark.triggers == 32, "what is said goes over it"
    assert settings.watermark.sets == MARKED["digits"]["watermark"]["sets"]
    assert settings.population.base_steps == MARKED["digits"]["population"]["base_steps"]
