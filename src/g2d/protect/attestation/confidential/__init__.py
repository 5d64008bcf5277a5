"""Confidential virtual machines: what their processors sign is verified, and held to a policy.

A backend verifies one kind of evidence up to the maker's root and shows what it says (`snp`,
`tdx`); what is wanted of that is judged here, by the same rules for all (`policy`). Neither asks a
processor for anything, nor fetches anything: endorsements are files that somebody hands over.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from g2d.errors import SealingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Protocol

    from g2d.protect.attestation.confidential.policy import Shown

    class Backend(Protocol):
        """Verifies one kind of evidence; a module is one."""

        def verify(
            self,
            evidence: bytes,
            endorsements: Sequence[bytes],
            roots: Sequence[bytes],
            now: datetime,
        ) -> Shown:
            """What evidence says, once it is verified up to a root.

            Args:
                evidence: as the machine handed it over. endorsements: files of the maker that it
                    handed over, or somebody: they are trusted in nothing. roots: certificates that
                    are trusted, PEM or DER; of a backend that knows its root, none. now: with a
                    time zone.

            Raises:
                SealingError: it is not what the maker's processor signed, in one line.
            """
            ...


__all__ = ["BACKENDS", "backend"]

BACKENDS = {"sev-snp": "snp", "tdx": "tdx"}
"""Modules of this package by the names that users know."""


def backend(kind: str) -> Backend:
    """The backend that a user named.

    Raises:
        SealingError: there is none of that name.
    """
    if kind not in BACKENDS:
        raise SealingError(
            f"{kind!r} is no kind of confidential machine that is verified: {', '.join(BACKENDS)}"
        )
    made: Backend = importlib.import_module(f"{__name__}.{BACKENDS[kind]}")
    return made
