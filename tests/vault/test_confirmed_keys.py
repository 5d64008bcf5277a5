"""A vault comes from anywhere, and chooses no key on this machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from g2d.errors import KeyFileError
from g2d.settings import Settings
from g2d.vault.confirmed import confirmed_key
from g2d.vault.signing import SigningKey
from g2d.vault.vault import Vault
from signed import run

SETTINGS = '[task]\nname = "digits"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Vault.create(tmp_path / "vault", SETTINGS).close()
    return tmp_path / "vault"


def test_a_vault_does_not_choose_a_key_of_mine(path, tmp_path, monkeypatch):
    key = tmp_path / "signing.key"
    SigningKey.generate().write(key)
    settings = Settings.from_vault(SETTINGS).override(signing__key=str(key))
    (path / "task.toml").write_text(settings.to_toml())  # somebody else's words
    with Vault.open(path, write=True) as vault:
        vault.write_settings(settings.override(gates__attempts=3).to_toml())  # not of the key
        with pytest.raises(KeyFileError, match=f"g2d keys use {path} --key {key}"):
            confirmed_key(vault, str(key))
        with monkeypatch.context() as env:
            env.setenv("G2D_SIGNING_KEY", str(key))
            assert confirmed_key(vault, str(key)) == key
    run("keys", "use", path, "--key", key)
    with Vault.open(path, write=True) as vault:
        assert confirmed_key(vault, str(key)) == key
        with pytest.raises(KeyFileError):
            confirmed_key(vault, str(tmp_path / "another.key"))
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "vault.lock").touch()
    (prepared / "task.toml").write_text(settings.to_toml())
    with Vault.create(prepared, settings.to_toml()) as vault, pytest.raises(KeyFileError):
        confirmed_key(vault, str(key))  # what lay there named it before we did


def written(path: Path, text: str) -> Vault:
    vault = Vault.open(path, write=True)
    vault.write_settings(text)
    return vault


CONFIRMS: list[Callable[[Path, str], Vault]] = [
    lambda path, text: Vault.create(path.with_name("new"), text),
    written,
]


@pytest.mark.parametrize("confirm", CONFIRMS, ids=["made with it", "settings changed"])
def test_settings_that_the_user_gives_confirm_their_key(path, tmp_path, confirm):
    key = str(tmp_path / "k")
    text = Settings.from_vault(SETTINGS).override(signing__key=key).to_toml()
    with confirm(path, text) as vault:
        assert confirmed_key(vault, key) == Path(key)


def test_a_vault_that_claims_the_identity_of_another_gets_no_key(path, tmp_path):
    """An identity is what a ledger says; it stands in every manifest that leaves a vault."""
    key = tmp_path / "signing.key"
    SigningKey.generate().write(key)
    run("keys", "use", path, "--key", key)
    settings = Settings.from_vault(SETTINGS).override(signing__key=str(key))
    with Vault.open(path) as vault:
        mine = vault.identity
    theirs = tmp_path / "theirs"
    Vault.create(theirs, SETTINGS).close()
    (theirs / "task.toml").write_text(settings.to_toml())
    with closing(sqlite3.connect(theirs / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE identity SET id = ?", (mine,))
    with Vault.open(theirs) as vault, pytest.raises(KeyFileError, match="nobody here has said"):
        confirmed_key(vault, str(key))
    with Vault.open(path) as vault:
        assert confirmed_key(vault, str(key)) == key
