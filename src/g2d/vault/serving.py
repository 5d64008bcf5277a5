"""A vault that is to be served: opened, unless it is one that is for an audit alone. No torch."""

from __future__ import annotations

from pathlib import Path

from g2d.errors import VaultError
from g2d.vault.records import PLANTED
from g2d.vault.vault import Vault


def open_to_serve(path: Path | str) -> Vault:
    """Open a vault for reading.

    Raises:
        VaultError: its networks learned planted canaries; or as `Vault.open`.
    """
    vault = Vault.open(path)
    try:
        if told := about_canaries(vault):
            raise VaultError(
                f"{vault.path} {told}: its networks learned wrong labels on purpose. Audit it with"
                " `g2d privacy audit`, and serve a vault of the same settings without canaries"
            )
    except BaseException:
        vault.close()
        raise
    return vault


def about_canaries(vault: Vault) -> str:
    """What is to be said of a vault with planted canaries; "": it has none."""
    entry = vault.entry(PLANTED)
    if entry is None:
        return ""
    return f"has {entry.info.get('canaries')} planted canaries and is for an audit of privacy alone"
