"""Which generations answer from the start: the newest, or the last few that a policy has live."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from g2d.errors import G2DError, RefusedError
from g2d.rotation.policy import policy_of
from g2d.rotation.snapshot import Live, Snapshot
from g2d.rotation.window import Window
from g2d.service.policy_state import GLOBAL, begin, retire
from g2d.settings import ServeSettings

if TYPE_CHECKING:
    from g2d.service.loader import VaultLoader


class Opened(NamedTuple):
    """What answers, why the newest would be refused as a new one, and why older ones are not."""

    live: Live
    warning: RefusedError | None
    left_out: str = ""


def open_live(loader: VaultLoader, serving: ServeSettings, vault: Path) -> Opened:
    """Load what is live under a policy, verified; remember the newest as served.

    One that cannot be served any more is left out with all that are older, so that no client goes
    back to one of those.

    Raises:
        VaultError: there is nothing that may be served, or the policy's state is damaged.
    """
    newest, warning = loader.first()
    loader.served(newest.number)
    # Twenty is more than may be live; another process may have committed one since.
    exposed = [number for number in loader.exposures() if number < newest.number]
    secret, numbers = begin(vault, serving, [*exposed, newest.number])
    if serving.policy == GLOBAL:
        return Opened(Live(newest), warning)
    snapshots, left_out = [newest], ""
    for number in reversed(numbers[:-1]):
        try:
            snapshots.insert(0, _older(loader, number))
        except G2DError as error:
            left_out = f"generation {number} and what is older are live no more: {error}"
            break
    retire(vault, snapshots[0].number)
    policy = policy_of(serving, secret, fresh=secrets.token_bytes(16))
    window = Window(snapshots, policy, serving.live, partial(retire, vault))
    return Opened(window, warning, left_out)


def _older(loader: VaultLoader, number: int) -> Snapshot:
    """Load what is live beside newer ones: there is something better, so its time counts."""
    return loader.load(number, number - 1)
