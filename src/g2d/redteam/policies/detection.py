"""Is an attack seen before it wins? A search is shown to what watches a service, query by query.

What watches comes from above (`g2d.service.monitors`, or anybody's observer): here it is whatever
has `observe`. How a search evades lives here, too; what it won is `query_log`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from g2d.attacks import project
from g2d.attacks.query import Api, SpentError
from g2d.core.types import Array, Bounds
from g2d.redteam.query_log import Answer, QueryLog
from g2d.redteam.scoring import Rate, share

PACE = 0.1  # seconds from one query of an attacker to its next


class Watch(Protocol):
    """Looks at what was asked and answered: an observer of a service."""

    def observe(self, inputs: Array, logits: Array, client: str) -> None:
        """Look at one request (n, ...), its scores (n, classes), and who asked."""
        ...


class Alarms:
    """What a watch raises: given to it in place of a service's alarm, and read by `Shown`.

    Attributes:
        raised: client and kind of each alarm so far; "" where it names nobody. seconds: what the
            watch's clock says.
    """

    def __init__(self) -> None:
        self.raised: list[tuple[str, str]] = []
        self.seconds = 0.0

    def __call__(self, kind: str, text: str, rotate: bool = True, **more: Any) -> None:
        """Note an alarm; everything but kind and client is for people."""
        self.raised.append((str(more.get("client", "")), kind))

    def now(self) -> float:
        """Monotonic seconds."""
        return self.seconds


class Shown:
    """An `Answer` of which every query is shown to a watch, one request each.

    A lane is seen at its first query during which an alarm was raised that names it or nobody. One
    that is seen, or has won, is shown no more, and where none is left the search ends.

    Args:
        answer: what answers. n: lanes. accounts: clients that a lane asks as, in turn.

    Attributes:
        seen: number of that query (n,), 0: none.
    """

    def __init__(
        self, answer: Answer, n: int, watch: Watch, alarms: Alarms, accounts: int = 1
    ) -> None:
        self._answer, self._watch, self._alarms = answer, watch, alarms
        self._accounts, self._pace = accounts, PACE / n
        self._log: QueryLog | None = None
        self.seen = torch.zeros(n, dtype=torch.long)

    def follow(self, log: QueryLog) -> None:
        """Say whose answers these are: it knows who has won."""
        self._log = log

    def __call__(self, x: Tensor, lanes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Answer as `answer` does.

        Raises:
            SpentError: every lane is seen or has won.
        """
        done = self.seen > 0
        if self._log is not None:
            done = done | (self._log.first > 0)
        if bool(done.all()):
            raise SpentError
        scores, network = self._answer(x, lanes, numbers)
        inputs, told = x.numpy(), scores.numpy().astype(np.float32)
        for row, (lane, number) in enumerate(zip(lanes.tolist(), numbers.tolist(), strict=True)):
            if not done[lane] and not self.seen[lane]:
                self._show(inputs[row : row + 1], told[row : row + 1], lane, number)
        return scores, network

    def _show(self, x: Array, scores: Array, lane: int, number: int) -> None:
        alarms, before = self._alarms, len(self._alarms.raised)
        alarms.seconds += self._pace
        self._watch.observe(x, scores, client_of(lane, number % self._accounts))
        own = f"attacker {lane} "
        if any(not name or name.startswith(own) for name, _ in alarms.raised[before:]):
            self.seen[lane] = number


def client_of(lane: int, account: int) -> str:
    """The name that a lane's account asks by."""
    return f"attacker {lane} account {account}"


@dataclass(frozen=True)
class Detection:
    """What became of n attackers.

    Attributes:
        before: share that was seen before its first success, of those that were seen or won.
        unseen: share of all that won without having been seen before. never: share of all that was
            not seen at all.
        median: queries until half of those that were seen were, None: nobody was.
    """

    before: Rate
    unseen: Rate
    never: Rate
    median: float | None

    @classmethod
    def of(cls, seen: Tensor, first: Tensor) -> Detection:
        """Count from the number of the query at which each was seen, and won (n,); 0: never."""
        n, spotted, won = len(seen), seen > 0, first > 0
        early = spotted & (~won | (seen < first))
        unseen = won & ~early
        decided = int((early | unseen).sum())
        median = float(seen[spotted].double().median()) if bool(spotted.any()) else None
        return cls(
            share(int(early.sum()), decided),
            share(int(unseen.sum()), n),
            share(int((~spotted).sum()), n),
            median,
        )


# --- evasion ---------------------------------------------------------------------------------


class Oracle(Protocol):
    """An attacker's own copy of a detector: what it would say of an input, before it is sent."""

    def near(self, x: Array, client: str) -> bool:
        """Whether an input (*shape) counts as near one that the client has sent."""
        ...

    def sent(self, x: Array, client: str) -> None:
        """Remember an input that the client sends."""
        ...


class Jitter:
    """Every query is moved by noise inside the ball, so that no two look alike.

    Args:
        api: what answers. x: clean images (n, ...). strength: of the noise, as a share of eps.
    """

    def __init__(
        self, api: Api, x: Tensor, *, eps: float, bounds: Bounds, strength: float,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self._api, self._x, self._eps, self._bounds = api, x, eps, bounds
        self._strength, self._generator = strength, generator

    def __call__(self, points: Tensor, lanes: Tensor) -> Tensor:
        """Answer points (m, ...) with the scores of what was sent in their place."""
        return self._api(self.moved(points, lanes, self._strength), lanes)

    def moved(self, points: Tensor, lanes: Tensor, strength: float | Tensor) -> Tensor:
        """Points with noise, inside ball and range; `strength` is one for all or (m,)."""
        noise = 2 * torch.rand(points.shape, generator=self._generator, dtype=points.dtype) - 1
        if isinstance(strength, Tensor):
            strength = strength.view(-1, *[1] * (points.dim() - 1)).to(points.dtype)
        moved = points + self._eps * strength * noise
        return project(moved, self._x[lanes], self._eps, self._bounds)


class Rejection:
    """Oracle-guided adaptive rejection sampling (OARS, Feng et al. 2023, arXiv 2303.06280).

    Before a point is sent the attacker asks its own copy of the detector. Where that would match,
    it draws anew with more noise, `draws` times at most; what noise gets through is kept per lane
    and sinks again while points pass. The paper's oracle is the service's own rejection; here no
    answer tells of an alarm, so the copy, which knows all but the salt, is more than it would have.

    Args:
        jitter: how noise is drawn. api: what answers. oracle: the copy. n: lanes. seen: whether a
            lane needs to hide no more, for it has been seen.

    Attributes:
        refused: points that no draw got past the copy, and were sent all the same. sent: all.
    """

    def __init__(
        self, jitter: Jitter, api: Api, oracle: Oracle, n: int, draws: int = 5,
        seen: Callable[[int], bool] = lambda lane: False,
    ) -> None:  # fmt: skip
        self._jitter, self._api, self._oracle, self._draws = jitter, api, oracle, draws
        self._seen = seen
        self._strength = torch.zeros(n)
        self.refused, self.sent = 0, 0

    def __call__(self, points: Tensor, lanes: Tensor) -> Tensor:
        """Answer points (m, ...) with the scores of what was sent in their place."""
        chosen = self._jitter.moved(points, lanes, self._strength[lanes])
        for row, lane in enumerate(lanes.tolist()):
            if not self._seen(lane):
                chosen[row] = self._passing(points[row], chosen[row], lane)
        return self._api(chosen, lanes)

    def _passing(self, point: Tensor, drawn: Tensor, lane: int) -> Tensor:
        client, one = client_of(lane, 0), torch.tensor([lane])
        strength, tried = float(self._strength[lane]), drawn.numpy()
        refused = self._oracle.near(tried, client)
        for draw in range(self._draws):
            if not refused:
                break
            strength = max(strength, (draw + 1) / self._draws)
            drawn = self._jitter.moved(point[None], one, strength)[0]
            tried = drawn.numpy()
            refused = self._oracle.near(tried, client)
        self._strength[lane] = strength if refused else 0.9 * strength
        self.refused, self.sent = self.refused + refused, self.sent + 1
        self._oracle.sent(tried, client)
        return drawn


def warm(
    watch: Watch, answer: Callable[[Tensor], Tensor], x: Tensor, alarms: Alarms, clients: int = 50
) -> int:
    """Show a watch honest queries, one request each; return how many alarms it raised.

    Monitors learn what is usual from the first inputs that they see.
    """
    scores, before = answer(x).numpy().astype(np.float32), len(alarms.raised)
    inputs: Array = x.numpy()
    for place in range(len(x)):
        alarms.seconds += PACE
        one = slice(place, place + 1)
        watch.observe(inputs[one], scores[one], f"honest {place % clients}")
    return len(alarms.raised) - before
