"""Who counts queries: the log of a query attack, so that no attack grades itself.

Many images are attacked at once, each in a lane of its own. What answers does not live here
(`targets`), nor how an attack searches (`attacks.query`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from g2d.attacks.query import SpentError, margins
from g2d.attacks.tables import is_region
from g2d.core.types import Bounds, Logits
from g2d.errors import SettingsError
from g2d.redteam.scoring import Rate, share
from g2d.redteam.targets import Target
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split

TOLERANCE = 1e-6  # float32 rounding of x + eps

Answer = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps inputs (m, ...), their lanes (m,) and the number of each query in its lane (m,), from 1, to
scores (m, classes) and which network answered (m,), -1 where that is not known."""


def by_count(models: Sequence[Logits], every: int | None, start: Tensor | None = None) -> Answer:
    """Networks that rotate by every lane's own count, never with None.

    Query q of a lane is answered by the network at place `start[lane] + (q - 1) // every`. Where
    the networks are used up it goes on from the first one; places go on rising all the same.

    Args:
        start: place at which each lane begins (n,), default 0: attackers come at different times.
    """

    def answer(x: Tensor, lanes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.zeros_like(numbers) if start is None else start[lanes]
        place = place if every is None else place + (numbers - 1) // every
        turn = place % len(models)
        met = turn.unique().tolist()
        if len(met) == 1:
            return predict(models[met[0]], x), place
        parts = [(turn == which).nonzero()[:, 0] for which in met]
        scores = [predict(models[k], x[part]) for k, part in zip(met, parts, strict=True)]
        return torch.cat(scores)[torch.cat(parts).argsort()], place

    return answer


def by_target(target: Target) -> Answer:
    """Whatever a target answers, by its own clock."""

    def answer(x: Tensor, lanes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        scores = target.predict(x)
        return scores, torch.full_like(numbers, -1 if target.number is None else target.number)

    return answer


class QueryLog:
    """The log of a query attack on n images, each an attacker with a budget of its own.

    It counts the queries of every lane and notes the first input inside the ball (L-infinity) and
    the data range that the network which answered it misclassified: that lane is won. A lane that
    is won or has spent its budget is asked no more: it hears its last answer again, which costs
    nothing. One run at the largest budget gives the ASR of every smaller one.

    With `beyond` a lane that is won goes on: `found` is then the input that the last network which
    was fooled misclassified by the most, `network` that network; `first` stays what it was.

    Attributes:
        spent: queries of every lane (n,). first: number of the winning query (n,), 0: none.
        network: which network was fooled (n,), -1: none or not known. found: the winning inputs,
            shape of `split.x`; clean where there is none.
    """

    def __init__(
        self,
        answer: Answer,
        split: Split,
        *,
        eps: float,
        budget: int,
        bounds: Bounds,
        beyond: bool = False,
    ) -> None:
        if budget < 1:
            raise SettingsError(f"a budget is at least one query, not {budget}")
        n = len(split)
        self.split, self.budget, self.beyond = split, budget, beyond
        self.spent = torch.zeros(n, dtype=torch.long)
        self.first = torch.zeros(n, dtype=torch.long)
        self.network = torch.full((n,), -1)
        self.found = split.x.clone()
        self._margin = torch.full((n,), math.inf)
        self._answer, self._eps, self._bounds = answer, eps, bounds
        self._last: Tensor | None = None

    def __call__(self, x: Tensor, lanes: Tensor) -> Tensor:
        """Answer inputs (m, ...) of lanes (m,) in their order with scores (m, classes).

        Raises:
            SpentError: every lane in the batch is won or has spent its budget.
        """
        numbers = self.spent[lanes] + _rank(lanes) + 1
        open_ = (self.first[lanes] == 0) | self.beyond
        asked = (open_ & (numbers <= self.budget)).nonzero()[:, 0]
        if not len(asked):
            raise SpentError
        inputs, lane = x[asked], lanes[asked]
        scores, network = self._answer(inputs, lane, numbers[asked])
        self.spent.index_add_(0, lane, torch.ones_like(lane))
        self._note(inputs, lane, numbers[asked], scores, network)
        if self._last is None:
            self._last = scores.new_zeros(len(self.split), scores.shape[1])
        self._last[lane] = scores
        heard = self._last[lanes]
        heard[asked] = scores
        return heard

    def _note(
        self, x: Tensor, lanes: Tensor, numbers: Tensor, scores: Tensor, network: Tensor
    ) -> None:
        wrong = (scores.argmax(1) != self.split.y[lanes]).nonzero()[:, 0]
        margin = margins(scores, self.split.y[lanes])
        for place in wrong[self._better(lanes[wrong], margin[wrong], network[wrong])].tolist():
            one = slice(place, place + 1)
            lane = int(lanes[place])
            if not bool(self._better(lanes[one], margin[one], network[one])):
                continue  # an earlier input of the batch was of the same lane
            if self._allowed(x[place], self.split.x[lane]):
                self.first[lane] = self.first[lane] or numbers[place]
                self.found[lane], self.network[lane] = x[place], network[place]
                self._margin[lane] = margin[place]

    def _better(self, lanes: Tensor, margin: Tensor, network: Tensor) -> Tensor:
        """Which flips (m,) are worth keeping: their lanes' first, or beyond it deeper or later."""
        first = self.first[lanes] == 0
        if not self.beyond:
            return first
        return first | (network != self.network[lanes]) | (margin < self._margin[lanes])

    def _allowed(self, x: Tensor, clean: Tensor) -> bool:
        if is_region(self._bounds):
            sent = self._bounds.project(x[None], clean[None], self._eps)[0]
            return bool((x - sent).abs().max() <= TOLERANCE)
        near = bool((x - clean).abs().max() <= self._eps + TOLERANCE)
        if self._bounds is None or not near:
            return near
        low, high = self._bounds
        return bool((x >= low - TOLERANCE).all() and (x <= high + TOLERANCE).all())

    def won(self, queries: int) -> Tensor:
        """Which lanes were won within so many queries (n,)."""
        return (self.first > 0) & (self.first <= queries)

    def asr(self, queries: int, lanes: int | None = None) -> Rate:
        """Share of (the first `lanes`) lanes that were won within so many queries."""
        won = self.won(queries)[:lanes]
        return share(int(won.sum()), len(won))


def _rank(lanes: Tensor) -> Tensor:
    """How many earlier inputs of the batch are of the same lane (m,)."""
    ordered, order = lanes.sort(stable=True)
    rank = torch.empty_like(lanes)
    rank[order] = torch.arange(len(lanes)) - torch.searchsorted(ordered, ordered)
    return rank
