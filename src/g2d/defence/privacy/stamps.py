"""What a private vault's releases say of the ledger: how much had been spent when they were made.

By it `protect.privacy.releases` knows what of the ledger a release rests on, and whether lines of
it were taken off since.
"""

from __future__ import annotations

from typing import Any

from g2d.protect.privacy.releases import STAMP
from g2d.settings import Settings
from g2d.vault.reading import VaultReader
from g2d.vault.spendings import read

__all__ = ["STAMP", "stamp"]


def stamp(vault: VaultReader, settings: Settings) -> dict[str, Any]:
    """What is kept with a release that was made now; {} where the vault is not private."""
    return {STAMP: read(vault).stamp()} if settings.privacy.enabled else {}
