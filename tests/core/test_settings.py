from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2d.errors import SettingsError
from g2d.settings import Settings


def test_round_trip_of_defaults():
    assert Settings.from_toml(Settings().to_toml()) == Settings()


@given(
    st.text(), st.lists(st.text(max_size=5), max_size=3), st.integers(2, 100), st.floats(1e-6, 9)
)
def test_round_trip_of_any_text_and_number(name, scope, members, rate):
    if any("\ud800" <= c <= "\udfff" for c in name + "".join(scope)):
        return
    settings = Settings().override(
        task__name=name,
        autoencoder__scope=tuple(scope),
        population__members=members,
        population__rate=rate,
    )
    assert Settings.from_toml(settings.to_toml()) == settings


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[guidanse]\nmu = 1", "Did you mean 'guidance'?"),
        ("[guidance]\npolish_step = 1", "Did you mean 'polish_steps'?"),
        ("[task]\neps = -0.1", "eps must lie in"),
        ("[population]\nrate = 0.0", "rate must lie in"),
        ("[population]\nmembers = 1", "members must lie in [2"),
        ("[population]\nmembers = 2.5", "members must be int"),
        ("[population]\nmembers = true", "members must be int"),
        ("[population]\nrecipe = 'repeled'", "Did you mean 'repelled'?"),
        ("[guidance]\nconditioned = 1", "conditioned must be bool"),
        ("[autoencoder]\nscope = 'fc.*'", "scope must be a list"),
        ("[autoencoder]\nscope = [1]", "list of texts"),
        ("task = 3", "'task' is a section"),
        ("[task", "not valid TOML"),
    ],
)
def test_bad_settings_say_what_to_do(toml, expected):
    with pytest.raises(SettingsError) as caught:
        Settings.from_toml(toml, "my.toml")
    assert expected in str(caught.value)
    assert "my.toml" in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        Settings.from_file(tmp_path / "absent.toml")


def test_override_keeps_the_rest_and_ignores_none():
    settings = Settings().override(guidance__mu=3.0, guidance__memory=None)
    assert settings.guidance == dataclasses.replace(Settings().guidance, mu=3.0)


def test_every_field_is_documented():
    for section in dataclasses.fields(Settings):
        part = getattr(Settings(), section.name)
        for item in dataclasses.fields(part):
            assert item.metadata["doc"], f"{section.name}.{item.name}"
