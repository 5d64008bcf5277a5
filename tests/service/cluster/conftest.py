"""A signed vault."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import g2d
from g2d.settings import Settings
from g2d.vault.signing import SigningKey
from g2d.vault.vault import Vault


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def signed(tiny_vault: Path, key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault of three generations; 2 and 3 are signed, 2 is live."""
    folder = tmp_path_factory.mktemp("signed")
    vault = Path(shutil.copytree(tiny_vault, folder / "vault"))
    key.write(folder / "k.key")
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_toml(opened.settings_text)
        opened.write_settings(settings.override(signing__key=str(folder / "k.key")).to_toml())
    with g2d.Defence.open(vault) as defence:
        defence.generate()
        defence.generate(activate=False)
    return vault
