"""A vault whose networks are to be used: opened, unless it is for an audit alone. No torch."""

from __future__ import annotations

from pathlib import Path

from g2d.errors import VaultError
from g2d.vault.reading import VaultReader
from g2d.vault.records import PLANTED
from g2d.vault.vault import Vault


def open_to_serve(path: Path | str) -> Vault:
    """Open a vault for reading whose networks are to be served, exported or learned from.

    Raises:
        VaultError: its networks learned planted canaries; or as `Vault.open`.
    """
    vault = Vault.open(path)
    try:
        refuse_planted(vault)
    except BaseException:
        vault.close()
        raise
    return vault


def refuse_planted(vault: VaultReader) -> None:
    """Refuse to use the networks of a vault with planted canaries.

    Raises:
        VaultError: it is one.
    """
    if told := about_canaries(vault):
        raise VaultError(
            f"{vault.path} {told}: its networks learned wrong labels on purpose. Audit it with"
            " `g2d privacy audit`, and use a vault of the same settings without canaries"
        )


def about_canaries(vault: VaultReader) -> str:
    """What is to be said of a vault with planted canaries; "": it has none."""
    entry = vault.entry(PLANTED)
    if entry is None:
        return ""
    return f"has {entry.info.get('canaries')} planted canaries and is for an audit of privacy alone"
