"""What of sealed files is verified: with a custodian all of it, without one that they are whole.

Nothing is changed. Knows no torch.
"""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

from g2d.errors import BrokenSealError, SealingError, VaultError
from g2d.vault.sealing.envelope import About, check_whole, is_sealed, open_file

if TYPE_CHECKING:
    from g2d.vault.sealing.record import Record
    from g2d.vault.vault import Vault

__all__ = ["SealCheck"]


class SealCheck:
    """One look at the sealed files of a vault.

    Attributes:
        unread: how many files are whole and could not be opened. why: the reason. damage: what is
            wrong with the ledger's record; "": nothing is.
    """

    def __init__(self, vault: Vault) -> None:
        self._sealing, self.identity = vault.sealing, vault.identity
        self._path = vault.path
        self.unread, self.why, self.damage = 0, "", ""
        self._record: Record | None = None
        try:
            self._record = vault.sealing.record
        except VaultError as error:
            self.damage = str(error)

    @property
    def unfinished(self) -> str:
        """What is to be said of a vault that is being sealed or unsealed; "": it is not."""
        state = self._record.state if self._record else ""
        if state not in ("sealing", "unsealing", "rekeying"):
            return ""
        command = f"g2d vault {state.removesuffix('ing')} {self._path}"
        return f"{state} it was begun and not finished: run `{command}` to go on"

    def content(self, data: bytes, about: About) -> bytes | None:
        """The content of a file's bytes, which may be plain; None: it cannot be opened here.

        Raises:
            BrokenSealError: it is not what was written there.
        """
        if not is_sealed(data):
            if why := self._sealing.why_sealed(self._record):
                raise BrokenSealError(f"it is not sealed, {why}")
            return data
        check_whole(data, about)
        if self.damage or self._record is None:
            raise BrokenSealError("it is sealed, and the ledger does not say by whom")
        try:
            if not self.why:  # asked once: a token locks itself after a few wrong PINs
                self._sealing.key(self._record)
        except SealingError as error:
            self.why = str(error)
        if self.why:
            self.unread += 1
            return None
        unwrap = partial(self._sealing.data_key, self._record)
        return open_file(io.BytesIO(data).read, unwrap, about)
