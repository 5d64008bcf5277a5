"""A holder of a vault's key whose blob was made elsewhere: put into the record, or renewed there.

Knows no torch.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from g2d.errors import SealingError
from g2d.vault.sealing.record import write_record

if TYPE_CHECKING:
    from g2d.vault.sealing.record import Held, Record
    from g2d.vault.vault import Vault

__all__ = ["held_by", "hold"]


def hold(vault: Vault, record: Record, kind: str, name: str, blob: bytes) -> Record:
    """Have a vault's key held under this name, in place of what was held under it before.

    Args:
        vault: open for writing. record: as it is now. blob: the key, wrapped by that custodian.
    """
    others = tuple(one for one in record.held if (one.kind, one.name) != (kind, name))
    made = replace(record, held=others).with_held(kind, name, blob, time.time())
    with vault._writing():
        write_record(vault._ledger, made)
    vault._checkpoint()
    return made


def held_by(record: Record, kind: str, name: str) -> Held:
    """What is held under a name.

    Raises:
        SealingError: nothing is.
    """
    for one in record.held:
        if (one.kind, one.name) == (kind, name):
            return one
    known = ", ".join(one.name for one in record.held) or "nobody"
    raise SealingError(f"the vault's key was not released to {name}; it is held by: {known}")
