"""Custodians: what may hold the keys of sealed vaults. A new one is a file, a test and a line.

Their protocol is `g2d.vault.sealing.custodian.Custodian`. Knows no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2d.errors import SealingError, nearest

if TYPE_CHECKING:
    from g2d.vault.held import Holder
    from g2d.vault.sealing.custodian import Custodian

__all__ = ["CUSTODIANS", "HOLDERS", "MAKERS", "absolute", "custodian", "holder", "make_custodian"]

CUSTODIANS: dict[str, str] = {
    "file": "g2d.protect.sealing.file:from_url",
    "paper": "g2d.protect.sealing.paper:from_url",
    "pkcs11": "g2d.protect.sealing.pkcs11:from_url",
    "tpm": "g2d.protect.sealing.tpm:from_url",
}
"""For each kind, the function that makes one of what follows "KIND:"; imported when it is named."""

MAKERS: dict[str, str] = {
    "file": "g2d.protect.sealing.file:make",
    "pkcs11": "g2d.protect.sealing.pkcs11:make",
}
"""For each kind whose key is made on demand, the function that does; None: it was there."""

HOLDERS: dict[str, str] = {
    "tpm": "g2d.protect.sealing.tpm_signing:holder_from_url",
}
"""For each kind in which signing keys are made and stay, the function that makes what asks it."""


def custodian(url: str) -> Custodian:
    """The custodian that a user named, as `file:PATH`, `pkcs11:...` or `paper`.

    Raises:
        SealingError: there is none of that name, or it cannot be used; in one line.
    """
    made: Custodian = _function(CUSTODIANS, url)(_rest(url))
    return made


def make_custodian(url: str) -> tuple[Custodian, bool]:
    """The custodian that a user named to hold a key, and whether its own key was made just now.

    Raises:
        SealingError: as `custodian`; or its key is not there and cannot be made.
    """
    _function(CUSTODIANS, url)
    made = _function(MAKERS, url)(_rest(url)) if _kind(url) in MAKERS else None
    return (custodian(url), False) if made is None else (made, True)


def holder(url: str) -> Holder:
    """What a user named to have signing keys made and kept in.

    Raises:
        SealingError: there is none of that name, or it cannot be used; in one line.
    """
    made: Holder = _function(HOLDERS, url)(_rest(url))
    return made


def absolute(url: str) -> str:
    """A custodian's name as it is remembered: the path of a file from the root on."""
    kind, rest = _kind(url), _rest(url)
    if kind != "file" or not rest:
        return url
    return f"file:{Path(rest).expanduser().absolute()}"


def _kind(url: str) -> str:
    return url.partition(":")[0]


def _rest(url: str) -> str:
    return url.partition(":")[2]


def _function(known: dict[str, str], url: str) -> Any:
    kind = _kind(url)
    if kind not in known:
        raise SealingError(
            f"{url!r} names no custodian: expected one of {', '.join(sorted(known))}, as in"
            f" file:PATH.{nearest(kind, known)}"
        )
    module, _, name = known[kind].partition(":")
    return getattr(importlib.import_module(module), name)
