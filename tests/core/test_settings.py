from __future__ import annotations

import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2d.errors import SettingsError
from g2d.settings import Settings, build, stored
from g2d.settings.fields import Checked, within


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


# --- settings that were renamed ------------------------------------------------------------------

RENAMED = [
    ("population", "harden", "light_eps", 0.25),
    ("autoencoder", "newest", "newest_share", 0.75),
    ("diffusion", "distance", "distance_weight", 0.5),
    ("guidance", "newest", "newest_weight", 3.0),
    ("guidance", "robust", "robust_weight", 2.0),
]


@pytest.mark.parametrize(("section", "old", "new", "value"), RENAMED)
def test_a_former_name_is_refused_with_the_new_one_and_a_vaults_own_is_understood(
    section, old, new, value, tmp_path
):
    text = f"[{section}]\n{old} = {value}\n"
    expected = rf"\[{section}\]: '{old}' is called '{new}' now"
    file = tmp_path / "my.toml"
    file.write_text(text)
    for refused in (
        lambda: Settings.from_toml(text, "my.toml"),
        lambda: Settings.from_file(file),
        lambda: Settings().override(**{f"{section}__{old}": value}),
    ):
        with pytest.raises(SettingsError, match=expected) as caught:
            refused()
        assert "\n" not in str(caught.value)
    kept = Settings.from_vault(text)
    assert getattr(getattr(kept, section), new) == value
    assert Settings.from_file(file, stored=True) == kept
    assert Settings.from_toml(kept.to_toml()) == kept, "it is written with the new name"
    with pytest.raises(SettingsError, match=f"'{old}' and '{new}' are one setting"):
        Settings.from_vault(text + f"{new} = {value}\n")


@pytest.mark.parametrize(("section", "old", "new", "value"), RENAMED)
def test_digests_see_the_former_name(section, old, new, value):
    part = getattr(Settings().override(**{f"{section}__{new}": value}), section)
    table = stored(part)
    assert table[old] == value
    assert new not in table
    assert list(table) == [
        item.metadata.get("was", item.name)
        for item in dataclasses.fields(part)
        if "since" not in item.metadata
    ]
    assert build(type(part), table, "kept", stored=True) == part


def test_a_manifests_digest_of_settings_is_what_0_1_0_wrote():
    """Both were computed by that release, whose names these settings had then."""
    changed = {f"{section}__{new}": value for section, _, new, value in RENAMED}
    named = {"autoencoder__scope": ("fc.*",), "harden__recipe": ("l2", "adversarial")}
    changed |= {"task__name": "mine:task"} | named
    found = [
        hashlib.sha256(settings.to_toml(former=True).encode()).hexdigest()
        for settings in (Settings(), Settings().override(**changed))
    ]
    assert found == [
        "90c1f4fcecde9b9f09a6d27fcf39172792a382669cf069b75867ae6412a81e0b",
        "c3bbdb339336ad72bcf5cbd12a8b72d5fa6c226a30d580e3c59f4654e2e24636",
    ]
    own = Settings().override(gates__extra=("m:g",), generator__space="m:S")
    assert Settings.from_vault(own.to_toml(former=True)) == own


def test_digests_leave_out_a_later_setting_until_it_is_used():
    @dataclasses.dataclass(frozen=True)
    class Grown(Checked):
        old: int = within(0, 9, 1, "from the beginning")
        later: int = within(0, 9, 0, "of a later release", since="0.2")

    assert stored(Grown()) == {"old": 1}
    assert stored(Grown(later=3)) == {"old": 1, "later": 3}
    assert build(Grown, {"old": 1}, "kept", stored=True) == Grown()


def test_no_two_sections_use_one_name_for_different_things():
    """A weight is called so where another section's limit or share has the plain name."""
    settings = Settings()
    names = {
        section.name: {item.name for item in dataclasses.fields(getattr(settings, section.name))}
        for section in dataclasses.fields(settings)
    }
    fields = set().union(*names.values())
    assert not fields & set(names), "a field is called as a section is"
    assert not {"newest"} & fields
    for name in ("robust", "distance"):
        assert [section for section in names if name in names[section]] == ["gates"]
