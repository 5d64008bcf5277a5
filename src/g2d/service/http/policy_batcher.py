"""Micro-batching where a policy says who is answered by which generation. Knows no HTTP.

What waits is still one batch; of it, requests of the same generations are computed together. Where
the newest answers everybody, `batcher` does the same in fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable

from g2d.core.types import Array
from g2d.protect.answers import LABEL, combined
from g2d.rotation.policy import quantised
from g2d.rotation.snapshot import Snapshot
from g2d.rotation.window import Window
from g2d.service.http.batcher import Batcher, Request, infer
from g2d.settings import ServeSettings


class PolicyBatcher(Batcher):
    """Answers each request from the generations that a policy chooses for its client.

    All requests of a batch are chosen for at the same moment, and from what answered then: a
    rotation in between changes none.

    Args:
        window: what is live. serving: `[serve]`. Others: see `Batcher`.
    """

    def __init__(
        self,
        window: Window,
        serving: ServeSettings,
        most: int,
        waiting: int,
        count: Callable[[int], None] = lambda _: None,
    ) -> None:
        super().__init__(window, most, waiting, count)
        self._window, self._quantum = window, serving.quantum
        self._labels = serving.answers == LABEL

    def _answer(self, requests: list[Request]) -> None:
        """Answer a batch, group by group; whoever is computed first is answered first."""
        groups: dict[tuple[int, ...], tuple[tuple[Snapshot, ...], list[Request]]] = {}
        now = self._window.now
        for request in requests:
            x = quantised(request.x, self._quantum) if self._window.reads else b""
            chosen = self._window.choose(request.client, x, now)
            numbers = tuple(snapshot.number for snapshot in chosen)
            groups.setdefault(numbers, (chosen, []))[1].append(request)
        assert self._loop is not None
        for numbers, (chosen, group) in groups.items():
            found = [infer(snapshot, group) for snapshot in chosen]
            answers = [self._combined(each) for each in zip(*found, strict=True)]
            self._loop.call_soon_threadsafe(self._deliver, group, answers, numbers)

    def _combined(self, answers: tuple[Array | Exception, ...]) -> Array | Exception:
        """One answer of several; where any failed there is none, for it would be of other ones."""
        scores = []
        for answer in answers:
            if isinstance(answer, Exception):
                return answer
            scores.append(answer)
        return combined(scores, self._labels)
