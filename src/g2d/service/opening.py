"""Which generations answer from the start: the newest, or the last few that a policy has live."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from g2d.errors import G2DError, RefusedError, UnavailableError, VaultError
from g2d.rotation.policy import policy_of
from g2d.rotation.snapshot import Live, Snapshot
from g2d.rotation.window import Window
from g2d.service.policy_state import GLOBAL, begin, retire
from g2d.service.suspects import Suspects
from g2d.settings import ServeSettings

if TYPE_CHECKING:
    from g2d.service.loader import VaultLoader


class Opened(NamedTuple):
    """What answers, why the newest would be refused as a new one, and why older ones are not.

    Attributes:
        suspects: keeps who is pinned and what cools down, over a restart.
    """

    live: Live
    warning: RefusedError | None
    left_out: str = ""
    suspects: Suspects | None = None


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
    suspects = Suspects(vault)
    if serving.policy == GLOBAL:
        return Opened(Live(newest), warning, suspects.damage, suspects)
    snapshots, left_out = [newest], suspects.damage
    # What others had left is not known where that is damaged: only the newest is above it.
    for number in reversed([] if left_out else numbers[:-1]):
        try:
            snapshots.insert(0, _older(loader, number))
        except G2DError as error:
            left_out = f"generation {number} and what is older are live no more: {error}"
            break
    retire(vault, snapshots[0].number)
    policy = policy_of(serving, secret, fresh=secrets.token_bytes(16))
    policy.restore(suspects.pins)
    retired = [number for number in exposed if number < snapshots[0].number]
    held: list[Snapshot] = []
    for number in policy.held(retired, serving.live):
        try:
            held.append(_older(loader, number))
        except G2DError as error:
            left_out = left_out or f"generation {number}, of a suspect, answers no more: {error}"
    window = Window(
        snapshots, policy, serving.live, partial(retire, vault), held=held,
        left=suspects.kept.left, keeper=suspects,
    )  # fmt: skip
    suspects.watch(window=window)
    return Opened(window, warning, left_out, suspects)


def missed(loader: VaultLoader, live: Live, number: int) -> Iterator[Snapshot]:
    """Load what was committed since what is live, and before a number: who follows looked late.

    Where several answer, whoever lacks one would send its clients to another than the first does.
    One that cannot be loaded is missed for good, and nobody here is sent below it.

    Raises:
        UnavailableError: try again.
    """
    if not isinstance(live, Window):
        return
    since = live.number
    for each in [between for between in loader.exposures() if since < between < number]:
        try:
            yield _older(loader, each)
        except UnavailableError:
            raise
        except VaultError:
            live.miss(each)


def _older(loader: VaultLoader, number: int) -> Snapshot:
    """Load what is live beside newer ones: there is something better, so its time counts."""
    return loader.load(number, number - 1)
