"""A signed vault, and the key that signed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from g2d.vault.signing import SigningKey


@pytest.fixture(scope="session")
def key(key_file: Path) -> SigningKey:
    return SigningKey.read(key_file)


@pytest.fixture(scope="session")
def signed(signed_vault: Path) -> Path:
    """A vault of three generations; 2 and 3 are signed, 2 is live."""
    return signed_vault
