"""A Square that infers the clock: it asks a point again to find out that it was moved.

What knows the clock lives in `query.clock_square`, whose search this is between two moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from g2d.attacks.pgd import check_budget, project
from g2d.attacks.query import Api, SpentError, differ, margins, propose_each, shrink, stripes
from g2d.attacks.tables import is_region
from g2d.core.types import Bounds


@dataclass(frozen=True)
class Probed:
    """What a search found that infers moves.

    Attributes:
        best: the best point of every image, shape of the inputs, inside ball and range.
        moves: how often each lane took its network for another one (n,).
        noisy: which lanes heard two answers to one point at once, and so gave up probing (n,).
    """

    best: Tensor
    moves: Tensor
    noisy: Tensor


def probing_square(
    api: Api,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    budget: int,
    generator: torch.Generator,
    bounds: Bounds = (0.0, 1.0),
    interval: int = 50,
    share: float = 0.8,
    beyond: bool = False,
) -> Probed:
    """Random search over squares by an attacker who is told no clock.

    Every `interval` queries a lane submits its probe once more, the point that it began at. Where
    the margin is another than before, it asks a second time: if the answer stays, the network
    behind the API has changed, so the best point is asked again and the squares begin large again;
    if it does not stay, answers are drawn anew for each request, and the lane never probes again.
    What it takes for the period is the time between its last two moves. (The best point is no
    probe: a proposal that a weaker network answers takes its place before the next probe.)

    Args:
        as `query.clock_square`; interval: queries of a lane from one probe to the next.

    Raises:
        SettingsError: eps is negative, no number or larger than the data range.
    """
    check_budget(eps, 1, bounds)
    shape, x = x.shape, x if x.dim() == 4 or is_region(bounds) else x.reshape(len(x), 1, 1, -1)
    search = _Search(x, y, stripes(x, eps, bounds, generator), eps, budget, bounds, interval, share)
    active = torch.arange(len(x))
    for _ in range(budget if len(x) else 0):
        point = search.ask(active, generator)
        try:
            scores = api(point.reshape(-1, *shape[1:]), active)
        except SpentError:
            break
        margin = margins(scores, y[active]).to(x.dtype)
        search.hear(active, point, margin)
        active = active if beyond else active[margin >= 0]
        if not len(active):
            break
    return Probed(search.best.reshape(shape), search.moves, search.noisy)


class _Search:
    """The state of every lane between two queries."""

    def __init__(
        self, x: Tensor, y: Tensor, start: Tensor, eps: float, budget: int, bounds: Bounds,
        interval: int, share: float,
    ) -> None:  # fmt: skip
        n = len(x)
        self.x, self.y, self.eps, self.bounds = x, y, eps, bounds
        self.interval, self.share = interval, share
        self.probe = project(start.reshape(x.shape), x, eps, bounds)
        self.best = self.probe.clone()
        self.loss = torch.full((n,), math.inf, dtype=x.dtype)
        self.age = torch.zeros(n, dtype=torch.long)  # queries since the last move
        self.period = torch.full((n,), float(budget))
        self.moves = torch.zeros(n, dtype=torch.long)
        self.noisy = torch.zeros(n, dtype=torch.bool)
        self.doubt = torch.zeros(n, dtype=torch.bool)  # the last probe heard another margin
        self.heard = torch.zeros(n, dtype=x.dtype)  # what it heard
        self.known = torch.full((n,), math.inf, dtype=x.dtype)  # margin of the probe
        self._probing = torch.zeros(n, dtype=torch.bool)

    def ask(self, lanes: Tensor, generator: torch.Generator) -> Tensor:
        """The next point of each lane: its probe, its best point again, or a proposal."""
        age = self.age[lanes]
        due = (age > 0) & (age % self.interval == 0) & ~self.noisy[lanes]
        probing = due | self.doubt[lanes]
        self._probing[lanes] = probing
        point = self.best[lanes].clone()
        point[probing] = self.probe[lanes[probing]]
        rows = (~probing & (age > 0)).nonzero()[:, 0]
        progress = (age / self.period[lanes])[rows].tolist()
        parts = [self.share * shrink(min(1.0, p)) for p in progress]
        point[rows] = propose_each(
            point[rows], self.x[lanes[rows]], self.eps, parts, self.bounds, generator
        )
        return point

    def hear(self, lanes: Tensor, point: Tensor, margin: Tensor) -> None:
        """Take the margins (m,) of the points that `ask` gave for the same lanes."""
        first, probed, doubt = self.age[lanes] == 0, self._probing[lanes], self.doubt[lanes]
        kept = ~probed & (first | (margin < self.loss[lanes]))
        self.best[lanes[kept]], self.loss[lanes[kept]] = point[kept], margin[kept]
        new = first & self.known[lanes].isinf()  # the search begins at its probe
        self.known[lanes[new]] = margin[new]
        self.age[lanes] += 1
        self._settle(lanes[doubt], margin[doubt])
        other = probed & ~doubt & differ(margin, self.known[lanes])
        self.doubt[lanes[other]] = True
        self.heard[lanes[other]] = margin[other]

    def _settle(self, lanes: Tensor, margin: Tensor) -> None:
        """Say of lanes that asked twice whether they were moved, or hear noise."""
        noise = differ(margin, self.heard[lanes])
        self.noisy[lanes[noise]] = True
        moved = lanes[~noise]
        self.moves[moved] += 1
        self.period[moved] = self.age[moved].clamp_min(self.interval).to(self.period.dtype)
        self.age[moved] = 0  # the best point is asked next
        self.known[lanes] = margin
        self.doubt[lanes] = False
