"""Custodians: what may hold the keys of sealed vaults. A new one is a file, a test and a line.

Their protocol is `g2d.vault.sealing.custodian.Custodian`. Knows no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from g2d.errors import SealingError, nearest

if TYPE_CHECKING:
    from g2d.vault.sealing.custodian import Custodian

__all__ = ["CUSTODIANS", "custodian"]

CUSTODIANS: dict[str, str] = {
    "file": "g2d.protect.sealing.file:from_url",
    "tpm": "g2d.protect.sealing.tpm:from_url",
}
"""For each kind, the function that makes one of what follows "KIND:"; imported when it is named."""


def custodian(url: str) -> Custodian:
    """Make the custodian that a user named, as `file:PATH`, `pkcs11:...` or `tpm`.

    Raises:
        SealingError: there is none of that name, or it cannot be used; in one line.
    """
    kind, _, rest = url.partition(":")
    if kind not in CUSTODIANS:
        raise SealingError(
            f"{url!r} names no custodian: expected one of"
            f" {', '.join(sorted(CUSTODIANS))}, as in file:PATH.{nearest(kind, CUSTODIANS)}"
        )
    module, _, name = CUSTODIANS[kind].partition(":")
    made: Custodian = getattr(importlib.import_module(module), name)(rest)
    return made
