"""OARS: query attacks that adapt to a detector of near-duplicates, so that it sees none.

Feng et al. 2023 (arXiv 2303.06280), "Stateful defenses for machine learning models are not yet
secure against black-box attacks": an attacker who can tell whether a query collides with earlier
ones (there: it was rejected) adapts how far proposals go until few collide, and draws again those
that do. Here no query is rejected and alarms are not visible, so the attacker of this file is given
more: a copy of the detector, with a salt of its own, that he asks before he sends (`Detector`).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from g2d.attacks.pgd import check_budget, project
from g2d.attacks.query import Api, SpentError, margins
from g2d.core.types import Bounds
from g2d.errors import SettingsError

_GROW, _SHRINK = 1.5, 0.9  # of a proposal's share of pixels: after a collision, after none


class Detector(Protocol):
    """What the attacker knows of the detector of near-duplicates."""

    def near(self, x: Tensor, lanes: Tensor) -> Tensor:
        """Which of the inputs (m, ...) would be near one that was sent in its lane (m,) bool."""
        ...

    def sent(self, x: Tensor, lanes: Tensor) -> None:
        """Learn what was sent: inputs (m, ...) of lanes (m,)."""
        ...


def oars_square(
    api: Api,
    detector: Detector,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    budget: int,
    generator: torch.Generator,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    share: float = 0.05,
    draws: int = 20,
    insist: bool = False,
    jitter: float = 0.0,
) -> Tensor:
    """Square attack (arXiv 1912.00049) with squares that grow until no near-duplicate is seen.

    Each image has a share of pixels of its own: where a proposal collides with what was sent, a
    larger one is drawn, by a half; where none did, the next is smaller by a tenth, down to `share`.

    Args:
        x: clean images (n, channels, height, width); others are taken as one row of pixels. y:
            their labels (n,). eps: radius of the L-infinity ball. budget: queries an image, and
            rounds: one in which every draw collided sends nothing, unless `insist`.
        share: least share of the pixels that a proposal changes. draws: proposals a query.
        jitter: half width of even noise on what is sent, inside ball and range.

    Returns:
        The best point of every image, shape of `x`, inside ball and range.

    Raises:
        SettingsError: eps is negative, no number or larger than the range; draws is below 1.
    """
    check_budget(eps, 1, bounds)
    if draws < 1:
        raise SettingsError(f"draws must be at least 1, not {draws}")
    search = _Search(detector, x, eps, bounds, generator, jitter)
    n = len(search.x)
    best, loss = search.x.clone(), torch.full((n,), math.inf)
    shares, active = torch.full((n,), max(share, 0.5)), torch.arange(n)
    for _ in range(budget):
        if not len(active):
            break
        point, shares[active], sendable = search.propose(
            best[active], active, shares[active], share, draws
        )
        lanes = active if insist else active[sendable]
        point = point if insist else point[sendable]
        if not len(lanes):
            continue
        search.sent(point, lanes)
        try:
            scores = api(point.reshape(-1, *x.shape[1:]), lanes)
        except SpentError:
            break
        margin = margins(scores, y[lanes]).to(loss.dtype)
        better = margin < loss[lanes]
        best[lanes[better]], loss[lanes[better]] = point[better], margin[better]
        active = active[loss[active] >= 0]
    return best.reshape(x.shape)


class _Search:
    """Draws the squares of all lanes, each of its own size."""

    def __init__(
        self, detector: Detector, x: Tensor, eps: float, bounds: tuple[float, float] | None,
        generator: torch.Generator, jitter: float,
    ) -> None:  # fmt: skip
        self.shape = x.shape
        self.x = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)
        self._detector, self._eps, self._generator = detector, eps, generator
        self._bounds: Bounds = bounds
        self._jitter = jitter

    def propose(
        self, best: Tensor, lanes: Tensor, shares: Tensor, least: float, draws: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return points (m, ...), their shares (m,) and which of them do not collide (m,)."""
        point, shares = best.clone(), shares.clone()
        open_ = torch.arange(len(lanes))
        first = True
        for _ in range(draws):
            point[open_] = self._square(best[open_], self.x[lanes[open_]], shares[open_])
            near = self._detector.near(self._as_given(point[open_]), lanes[open_])
            free = open_[~near]
            if first:
                shares[free] = (shares[free] * _SHRINK).clamp_min(least)
            first, open_ = False, open_[near]
            shares[open_] = (shares[open_] * _GROW).clamp_max(1.0)
            if not len(open_):
                break
        sendable = torch.ones(len(lanes), dtype=torch.bool)
        sendable[open_] = False
        return point, shares, sendable

    def sent(self, point: Tensor, lanes: Tensor) -> None:
        self._detector.sent(self._as_given(point), lanes)

    def _as_given(self, point: Tensor) -> Tensor:
        return point.reshape(-1, *self.shape[1:])

    def _square(self, best: Tensor, x: Tensor, shares: Tensor) -> Tensor:
        """Set a square of every image to plus or minus eps, by a sign for each channel."""
        n, channels, height, width = x.shape
        cells = shares * height * width
        tall = cells.sqrt().round().clamp(1, height)
        wide = (cells / tall).round().clamp(1, width)
        corner = torch.rand((2, n), generator=self._generator)
        top = (corner[0] * (height - tall + 1)).floor()[:, None]
        left = (corner[1] * (width - wide + 1)).floor()[:, None]
        rows, columns = torch.arange(height), torch.arange(width)
        inside = ((rows >= top) & (rows < top + tall[:, None]))[:, None, :, None]
        inside = inside & ((columns >= left) & (columns < left + wide[:, None]))[:, None, None, :]
        signs = 2.0 * torch.randint(0, 2, (n, channels, 1, 1), generator=self._generator) - 1.0
        # Within a large square, stripes: of one sign there are two outcomes, and both collide.
        stripes = 2.0 * torch.randint(0, 2, (n, channels, 1, width), generator=self._generator) - 1
        large = (shares > 0.25)[:, None, None, None]
        moved = x + self._eps * torch.where(large, stripes, signs)
        point = torch.where(inside, moved, best)
        if self._jitter:
            noise = 2 * torch.rand(point.shape, generator=self._generator) - 1
            point = point + self._jitter * noise
        return project(point, x, self._eps, self._bounds)
