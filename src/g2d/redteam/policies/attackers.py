"""Searches against a service that has a policy: one account or several, with a clock or without.

What they search by is `attacks`; who counts their queries is `query_log`, what answers `service`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from g2d.attacks.probing import probing_square
from g2d.attacks.query import Api, clock_square, hop_skip_jump, margins
from g2d.core.types import Bounds
from g2d.errors import SettingsError
from g2d.protect.answers import LABEL
from g2d.redteam.policies.service import Service
from g2d.redteam.query_log import QueryLog


@dataclass(frozen=True)
class Attacker:
    """Who attacks a service.

    Attributes:
        name: a key. attack: the algorithm, knows: what its author knows, in words.
        accounts: clients that it asks as. beyond: goes on after its first flip.
        infers: is told no clock. labels: reads labels alone.
    """

    name: str
    attack: str
    knows: str
    accounts: int = 1
    beyond: bool = False
    infers: bool = False
    labels: bool = False


ATTACKERS = {
    one.name: one
    for one in (
        Attacker("clock", "Square (ours)", "scores, knows the clock"),
        Attacker(
            "margin",
            "Square (ours, deepest margin)",
            "scores, knows the clock and goes on after the first flip",
            beyond=True,
        ),
        Attacker("accounts-5", "Square (ours)", "scores, knows the clock, five accounts", 5),
        Attacker("accounts-20", "Square (ours)", "scores, knows the clock, twenty accounts", 20),
        Attacker(
            "inferred",
            "Square (ours, asks again)",
            "scores, infers from repeated queries that he was moved",
            infers=True,
        ),
        Attacker("labels", "HopSkipJump (ART)", "labels, does not know the clock", labels=True),
    )
}
"""Every attacker by name."""


class Accounts:
    """An API that several accounts of one attacker speak to: the best of them goes on.

    At the first query, and whenever the clock has ticked, every account asks about the same point;
    the one whose network answers with the least margin speaks until the next tick. All that is
    asked counts against the lane's one budget.

    Args:
        log: what counts. service: what is told who speaks. count: accounts.
        period: calls from one tick to the next, as the search counts them.
    """

    def __init__(self, log: QueryLog, service: Service, count: int, period: int) -> None:
        self._log, self._service, self._count, self._period = log, service, count, period
        self._calls = 0

    def __call__(self, x: Tensor, lanes: Tensor) -> Tensor:
        """Answer inputs (m, ...) of lanes (m,), each lane once, with scores (m, classes)."""
        scout = self._calls % self._period == 0
        self._calls += 1
        if not scout:
            return self._log(x, lanes)
        heard, best = None, torch.zeros_like(lanes)
        for account in range(self._count):
            self._service.speak(lanes, torch.full_like(lanes, account))
            scores = self._log(x, lanes)
            if heard is None:
                heard = scores
                continue
            y = self._log.split.y[lanes]
            better = margins(scores, y) < margins(heard, y)
            heard = torch.where(better[:, None], scores, heard)
            best = torch.where(better, torch.full_like(best, account), best)
        self._service.speak(lanes, best)
        assert heard is not None, "at least one account"
        return heard


def search(
    attacker: Attacker,
    service: Service,
    log: QueryLog,
    *,
    eps: float,
    bounds: Bounds,
    classes: int,
    seed: int,
) -> dict[str, float]:
    """Let an attacker search; what it won stands in the log.

    Returns:
        what it says of itself, as plain numbers by name: how often it thought that it was moved.

    Raises:
        SettingsError: a period is too short for so many accounts to be asked in it.
    """
    x, y = log.split.x, log.split.y
    if attacker.labels:
        assert isinstance(bounds, tuple), "checked before"
        hop_skip_jump(log, x, y, seed=seed, bounds=bounds, classes=classes)
        return {}
    generator = torch.Generator().manual_seed(seed)
    if attacker.infers:
        found = probing_square(
            log, x, y, eps=eps, budget=log.budget, generator=generator, bounds=bounds,
            beyond=attacker.beyond,
        )  # fmt: skip
        count = max(1, len(x))
        return {
            "moves_inferred": float(found.moves.sum()) / count,
            "gave_up_inferring": float(found.noisy.sum()) / count,
        }
    every, more = service.scheme.every, attacker.accounts - 1
    if (every or log.budget) <= more:
        raise SettingsError(
            f"{attacker.accounts} accounts do not fit into {every or log.budget} queries; give a "
            "longer period or a larger budget"
        )
    period = every - more if every else None
    api: Api = log
    if attacker.accounts > 1:
        api = Accounts(log, service, attacker.accounts, period or log.budget)
    clock_square(
        api, x, y, eps=eps, budget=log.budget, generator=generator, bounds=bounds, every=period,
        beyond=log.beyond, sure=_sure(service),
    )  # fmt: skip
    return {}


def _sure(service: Service) -> bool:
    """Whether a tick is as good as a move; of labels none can tell, so that each is taken for one.

    Under `sticky` few ticks move an account, and a search that begins anew on the same network
    only loses what it had.
    """
    told = service.scheme.settings
    return told.policy != "sticky" or told.answers == LABEL
