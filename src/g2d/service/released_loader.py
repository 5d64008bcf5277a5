"""Loads what was released to a host that holds releases alone, from a folder that is copied to it.

Which of a ledger's generations is live is decided here: the newest that opens. What does not open
is told once; what is live stays. No vault's key and no attack pool is on this host.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from g2d.core.platforms import open_plain, private_state
from g2d.errors import BrokenSealError, RefusedError, UnavailableError, VaultError
from g2d.protect.canaries.kept import CANARIES
from g2d.rotation.events import Refused
from g2d.service.encrypted.opening import EncodingLoader
from g2d.vault.confirmed import state_file
from g2d.vault.rollback import judge
from g2d.vault.sealing.envelope import head_of
from g2d.vault.serving import open_to_serve
from g2d.vault.vault import SIGNATURE, Vault

__all__ = ["PATIENCE", "ReleasedLoader"]

PATIENCE = 5.0
"""Seconds that a copy may take to arrive, or a release to follow its generation, until it is told,
and at least until what did not open is tried again."""

_MOST = 60.0
"""Seconds until then, at most."""

_FOLDER = "released"


class ReleasedLoader(EncodingLoader):
    """A `VaultLoader` to which live is the newest committed generation that opens here.

    A copy whose ledger was replaced by a newer one of the same vault is opened anew. What was
    served is remembered in the state folder, if no other file is named for that: the ledger's live
    generation may be one that never came.
    """

    _files = ("weights", CANARIES)  # attacks were released to nobody
    follows: ClassVar[bool] = True

    _newest, _failing = 0, 0.0  # what opened here last; since when the folder cannot be read
    _former: Vault | None = None
    _identity = ""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._looking = threading.RLock()
        self._closed: dict[int, _Closed] = {}
        super().__init__(*arguments, **options)

    def live(self) -> int:
        """Return the newest number that was committed and opens on this host.

        Raises:
            UnavailableError: the folder is perhaps being copied. VaultError: none opens, or the
                vault was put back, or is another one.
        """
        with self._looking:
            try:
                number = self._look()
            except RefusedError:
                raise
            except VaultError as error:
                now = time.monotonic()
                self._failing = self._failing or now
                if self._newest and now < self._failing + PATIENCE:
                    raise UnavailableError(str(error)) from error
                raise
            self._failing = 0.0
            return number

    def close(self) -> None:
        """Close the vault."""
        super().close()
        if self._former is not None:
            self._former.close()

    def _check_place(self, vault: Path) -> None:
        if self._served is None:
            private_state(_FOLDER)
            self._served = state_file(self._vault, _FOLDER)
        self._vault.sealing.demand()  # what was released is sealed, whatever the record says
        super()._check_place(vault)

    def _look(self) -> int:
        if self._vault.replaced():
            self._open_again()
        self._identity = self._identity or self._vault.identity
        _check_same(self._vault, self._identity)  # a frozen ledger is opened anew each time
        committed, exposed = super().live(), self.exposures()
        if committed < self._newest:
            return committed  # it was put back, and whoever asked says so
        self._closed = {n: why for n, why in self._closed.items() if n in exposed}
        for number in reversed(exposed):
            if number <= self._newest:
                break
            if self._opens(number):
                self._newest = number
                break
        if not self._newest:
            why = self._closed[committed].why
            raise VaultError(f"{self._vault.path} cannot be served here: {why}")
        return self._newest

    def _open_again(self) -> None:
        """Open the ledger that was put into the place of the open one."""
        fresh = open_to_serve(self._vault.path)
        try:
            _check_same(fresh, self._identity)
            if self._marks is not None:
                judge(fresh, self._marks)
            fresh.sealing.take_over(self._vault.sealing)
            fresh.sealing.demand()
        except BaseException:
            fresh.close()
            raise
        gone, self._former, self._vault = self._former, self._vault, fresh
        if gone is not None:  # not the one before: another thread may be reading it
            gone.close()

    def _opens(self, number: int) -> bool:
        """Whether a generation opens here; tells, once for each reason, why it does not."""
        now, known = time.monotonic(), self._closed.get(number)
        held = self._vault.sealing.released(number)
        if known and known.held == held and now < known.again:
            return False
        try:
            self._check(number)
            return True
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
        except VaultError as error:
            why = str(error)
        since, told = (known.since, known.told) if known else (now, "")
        if self._newest and told != why and now >= since + PATIENCE:
            self._say(number, told := why)
        wait = min(max(PATIENCE, now - since), _MOST)  # a TPM is asked for what is another host's
        self._closed[number] = _Closed(why, held, now + wait, since, told)
        return False

    def _check(self, number: int) -> None:
        """Check that all of a generation that is served has arrived, and that its keys are here."""
        vault = self._vault
        record, row = vault.sealing.record, vault.generation(number)
        folder = vault.generation_file(number).parent
        vault.read_generation(number, "manifest")
        if self._key is not None:
            os.close(open_plain(folder / SIGNATURE))
        if record is None:
            raise VaultError("the ledger says no more that the vault is sealed")
        for name in (name for name in self._files if name in row.files):
            path = vault.generation_file(number, name)
            with os.fdopen(open_plain(path), "rb") as file:
                head = head_of(file.read)
                whole = os.fstat(file.fileno()).st_size == head.whole
            if not whole or head.about != vault.sealing.generation(number, name, row.files[name]):
                raise BrokenSealError(f"{path} is not, or not yet, what the ledger says")
            vault.sealing.data_key(record, head)

    def _say(self, number: int, why: str) -> None:
        text = f"generation {number} does not open here: {why}"
        if self._newest:
            text += f". Generation {self._newest} goes on"
        self._tell(Refused(generation=number, reason="released", text=text, live=self._newest))


def _check_same(vault: Vault, identity: str) -> None:
    if vault.identity != identity:
        raise VaultError(
            f"another vault was put in the place of {vault.path} while it was served: look why, and"
            " start the service again"
        )


@dataclass(frozen=True)
class _Closed:
    """A generation that does not open.

    Attributes:
        why: what was said. held: the releases that were tried. again, since: when it is tried
            next, and was first, in seconds. told: the reason that was told; "": none was yet.
    """

    why: str
    held: tuple[bytes, ...]
    again: float
    since: float
    told: str
