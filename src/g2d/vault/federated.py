"""Vaults whose population clients have trained, each on records of its own. No torch."""

from __future__ import annotations

from g2d.vault.reading import VaultReader

FEDERATED = "federated"
"""What is noted with what clients have trained, and in the manifests of what is made of it."""


def is_federated(vault: VaultReader) -> bool:
    """Whether clients have trained what a vault holds."""
    base = vault.entry("base")
    return base is not None and FEDERATED in base.info
