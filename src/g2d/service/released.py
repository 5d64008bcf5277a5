"""A host that holds releases alone: how it is told from others, and rotation where nothing is made.

What it serves is read in `released_loader`; what a release is, is in `vault.sealing.released`. No
torch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from g2d.errors import GenerationError, SealingError, SettingsError
from g2d.rotation.events import Tell
from g2d.rotation.scheduler import Rotation
from g2d.rotation.snapshot import Live, Snapshot
from g2d.rotation.triggers import AlarmBudget, Triggers
from g2d.vault.sealing.remembered import VARIABLE, named_here, remembered
from g2d.vault.vault import Vault

if TYPE_CHECKING:
    from g2d.service.http.options import Options
    from g2d.service.loader import VaultLoader

__all__ = ["ReleasedRotation", "holds_releases_alone", "refuse_triggers"]

_NOTHING_MADE = (
    "this host was given releases alone, and makes no generations: release the next one where they"
    " are made (`g2d attest ask`, `release`)"
)


def holds_releases_alone(path: Path) -> bool:
    """Whether a vault is sealed, and this host opens what was released to it and no more.

    Raises:
        VaultError: it cannot be read. SealingError: nobody has said what opens it here; or it is
            plain by its ledger, and was sealed here, or a custodian is named all the same.
    """
    with Vault.open(path) as vault:
        record = vault.sealing.record
        if record is None:
            if remembered(vault).sealed:  # who writes a host's copy would have plaintext served
                raise SealingError(
                    f"{path} was sealed here, and its ledger says so no more: it is not served."
                    f" Restore it; or if you mean it so, run `g2d vault unseal {path}`"
                )
            if os.environ.get(VARIABLE):  # at the first start nothing is remembered yet
                raise SealingError(
                    f"{path} is not sealed, and {VARIABLE} names what opens it: plaintext is not"
                    f" served. Seal it (`g2d vault seal {path}`), or unset {VARIABLE}"
                )
            return False
        if os.environ.get(VARIABLE) and not record.all_sealed and not remembered(vault).sealed:
            raise SealingError(
                f"{path} is only half sealed by its ledger ({record.state}), and was never opened"
                f" here: plaintext is not served where {VARIABLE} is set. Finish it with `g2d vault"
                f" {'unseal' if record.state == 'unsealing' else 'seal'} {path}`"
            )
        named_here(vault)  # said before anything else: that the vault is new here is no news then
        return vault.sealing.releases_alone(record)


def refuse_triggers(options: Options) -> None:
    """Refuse options that say when the next generation is made, where none is.

    Raises:
        SettingsError: one is given.
    """
    if options.every or options.queries:
        raise SettingsError(
            f"{_NOTHING_MADE}. It changes over when it finds one: leave out --every and --queries"
        )


class _Nobody:
    """Makes no generation: waits until it is closed."""

    def __init__(self) -> None:
        self._ending = threading.Event()

    def make(self, after: int) -> int:
        self._ending.wait()
        raise GenerationError(_NOTHING_MADE)

    def commit(self, number: int) -> None:
        raise GenerationError(_NOTHING_MADE)

    def close(self) -> None:
        self._ending.set()


class ReleasedRotation(Rotation):
    """A rotation that changes over when a newer generation was released; it has none made.

    Args:
        as `Rotation` has them.
    """

    def __init__(
        self,
        live: Live,
        loader: VaultLoader,
        tell: Tell,
        unready: Callable[[], str],
        budget: AlarmBudget,
        missed: Callable[[int], Iterable[Snapshot]],
    ) -> None:
        super().__init__(
            live, _Nobody(), loader, Triggers(), tell, unready=unready, budget=budget, missed=missed
        )

    def request(self) -> Future[int]:
        """Refuse: the next generation comes when it is released."""
        future: Future[int] = Future()
        future.set_exception(GenerationError(_NOTHING_MADE))
        return future
