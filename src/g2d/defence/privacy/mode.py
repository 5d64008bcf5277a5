"""Which vaults are private, how their people are kept apart, and what does not go with that.

With `[privacy] enabled = false` nothing here does anything.
"""

from __future__ import annotations

import hashlib

from g2d.errors import PrivacyError
from g2d.settings import Settings
from g2d.tasks.shielded import Shield
from g2d.tasks.task import Task
from g2d.vault.reading import VaultReader
from g2d.vault.spendings import read

_PURPOSE = b"g2d private parts 1\0"


def shield_of(settings: Settings, vault: VaultReader | None) -> Shield | None:
    """How a vault's people are kept apart from public data; None: it is not private.

    The key by which records are sorted comes of the vault's identity: no record had a say in it.

    Args:
        vault: None: there is none yet; parts are drawn otherwise then.
    """
    p = settings.privacy
    if not p.enabled:
        return None
    identity = "" if vault is None else vault.identity
    key = hashlib.sha256(_PURPOSE + identity.encode()).digest()
    return Shield(p.public, key, p.gating != "public", p.unit)


def apart(task: Task, settings: Settings) -> Task:
    """The task with people's records apart, as a vault that is not there yet will have it.

    Another vault sorts them otherwise. What cannot be trained privately is refused elsewhere.

    Raises:
        PrivacyError, DataError: as `Shield.over`.
    """
    shield = shield_of(settings, None)
    return task if shield is None else shield.over(task)


def check_adopting(settings: Settings, what: str) -> None:
    """Refuse networks of unknown making in a private vault.

    Raises:
        PrivacyError: it is private.
    """
    if settings.privacy.enabled:
        raise PrivacyError(
            f"{what} was not trained in this vault's ledger: epsilon is infinite for it and for"
            " all that is made of it. Leave it out, or set [privacy] enabled = false, and nothing"
            " is guaranteed"
        )


def check_mode(settings: Settings, vault: VaultReader) -> None:
    """Refuse to turn private mode on or off in a vault that has begun.

    Raises:
        PrivacyError: it was begun in the other mode.
    """
    charged, begun = bool(read(vault).lines), vault.begun()
    if settings.privacy.enabled and begun and not charged:
        raise PrivacyError(
            f"{vault.path} was begun without privacy, and what it holds has no guarantee (epsilon"
            " is infinite): make a new vault, or set [privacy] enabled = false again"
        )
    if charged and not settings.privacy.enabled:
        raise PrivacyError(
            f"{vault.path} was made with [privacy] enabled = true, and would read people's records"
            " as they are without: set it to true again, or make a new vault"
        )
