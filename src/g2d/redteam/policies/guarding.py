"""What watches a simulated service: seen attackers are pinned, as the service would pin them.

Monitors of a service lie in a layer of their own, beside the red team; whoever runs both gives a
guard for each lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from torch import Tensor

from g2d.core.types import Array
from g2d.redteam.scoring import share


class Guard(Protocol):
    """Watches one lane's service."""

    def look(self, x: Array, scores: Array, client: str, seconds: float) -> Mapping[str, bool]:
        """Look at one request; return whom alarms are about, and whether they ask for a rotation.

        Args:
            x: (1, ...). scores: (1, classes), before they are told in another form. client: who
                asked. seconds: of the lane's clock.
        """
        ...

    def swapped(self) -> None:
        """A rotation came."""
        ...


def told_of(seen: Tensor, first: Tensor) -> dict[str, Any]:
    """Whether attackers were seen before they won, from the number of a query of each (n,).

    Args:
        seen: the first alarm about any of its accounts, 0: none. first: the first wrong answer.

    Returns:
        `seen`, the numbers; `seen_before`: share seen before the first wrong answer, of those that
        were seen or won; `won_unseen`: share of all; `seen_at`: median number, of those seen.
    """
    spotted, won = seen > 0, first > 0
    early = spotted & (~won | (seen < first))
    unseen = won & ~early
    told: dict[str, Any] = {
        "seen": seen.tolist(),
        "seen_before": asdict(share(int(early.sum()), int((early | unseen).sum()))),
        "won_unseen": asdict(share(int(unseen.sum()), len(seen))),
    }
    if bool(spotted.any()):
        told["seen_at"] = float(seen[spotted].double().median())
    return told
