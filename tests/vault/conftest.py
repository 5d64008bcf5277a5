"""Fixtures of the vault's tests: an empty vault, a folder that anyone can reach, a key."""

import pytest

from g2d.vault.keys import SigningKey
from g2d.vault.vault import Vault
from vaults import open_path

__all__ = ["open_path"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "a vault? #1 %é"  # characters that a careless sqlite URI would trip over


@pytest.fixture
def vault(folder):
    with Vault.create(folder, "[task]\n") as made:
        yield made


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return SigningKey.generate()
