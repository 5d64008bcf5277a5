"""What `verify` finds: one thing that is wrong, in words. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Kind", "Problem"]

Kind = Literal[
    "ledger", "settings", "row", "number", "exposure", "absent", "unreadable", "digest", "tensors",
    "architecture", "manifest", "signature", "commitment", "privacy", "unknown", "sealing",
    "custodian",
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `where` is a path in the vault, `what` says it in words."""

    kind: Kind
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"
