"""What a find is worth once it is found: sent again, or used on other clients."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from g2d.attacks import project
from g2d.core.types import Bounds
from g2d.redteam.policies.service import Service
from g2d.redteam.query_log import QueryLog
from g2d.redteam.scoring import Rate, share

AGAIN = 10  # resubmissions of a find
CLIENTS = 10  # other clients that a find is used on


class Finds:
    """The finds of a search as they are sent, at the moment at which their lane ended.

    Call `told` once and last: policies may remember who asked what.

    Args:
        at: the budget whose finds are looked at.
    """

    def __init__(
        self, service: Service, log: QueryLog, at: int, *, eps: float, bounds: Bounds
    ) -> None:
        self._service, self._log = service, log
        self.lanes = log.won(at).nonzero()[:, 0]
        self._x = project(log.found, log.split.x, eps, bounds)[self.lanes]
        self._clean, self._y = log.split.x[self.lanes], log.split.y[self.lanes]
        self._spent = log.spent[self.lanes]

    def told(self) -> dict[str, Any]:
        """Rates by name; none where nothing was found.

        `again` and `again_any`: a resubmission at once wins; any of `AGAIN` does. `later`,
        `later_any`: one in each of the next `AGAIN` periods. `replayed`: on `CLIENTS` other clients
        at the moment of the find; `replayed_next`: after the next rotation; `replayed_gone`: after
        as many as take all that is live now away. Intervals are those of as many trials as there
        are finds, since trials of one find depend on each other.
        """
        if not len(self.lanes):
            return {}
        live = self._service.scheme.live
        at_once = torch.stack([self._wins(0) for _ in range(AGAIN)])
        replays = {"replayed": self._replayed(0)}
        later = []
        # In the order of time: who has moved on never goes back.
        for rotations in range(1, max(AGAIN, live) + 1):
            if rotations <= AGAIN:
                later.append(self._wins(rotations))
            if rotations == 1:
                replays["replayed_next"] = self._replayed(1)
            if rotations == live:
                replays["replayed_gone"] = self._replayed(live) if live > 1 else (
                    replays["replayed_next"]
                )  # fmt: skip
        found = {
            "again": self._mean(at_once), "again_any": self._any(at_once),
            "later": self._mean(torch.stack(later)), "later_any": self._any(torch.stack(later)),
        } | replays  # fmt: skip
        return {name: asdict(rate) for name, rate in found.items() if rate is not None}

    def _wins(self, rotations: int) -> Tensor:
        """Which finds are misclassified, sent by their account after so many rotations."""
        scores = self._service.ask(self._x, self.lanes, self._spent, rotations=rotations)
        return scores.argmax(1) != self._y

    def _replayed(self, rotations: int) -> Rate | None:
        """Share of the other clients' right answers that the finds flip."""
        right = flipped = 0
        for client in range(CLIENTS):
            before, after = (
                self._service.ask(
                    x, self.lanes, self._spent, rotations=rotations, client=f"other {client}"
                ).argmax(1)
                for x in (self._clean, self._x)
            )
            right += int((before == self._y).sum())
            flipped += int(((before == self._y) & (after != self._y)).sum())
        return share(flipped / right * len(self.lanes), len(self.lanes)) if right else None

    def _mean(self, wins: Tensor) -> Rate:
        return share(float(wins.double().mean(0).sum()), wins.shape[1])

    def _any(self, wins: Tensor) -> Rate:
        return share(int(wins.any(0).sum()), wins.shape[1])
