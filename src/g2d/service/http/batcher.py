"""Micro-batching: one thread infers; what waits when it is free is one batch of one generation.

Nothing waits on purpose: an idle service answers a lone request at once. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from g2d.core.types import Array
from g2d.rotation.snapshot import Live, Snapshot


class BusyError(Exception):
    """Too many inputs wait already."""


class BrokenError(Exception):
    """The model raised something on these inputs; its type is said, no value of theirs."""


class NotFiniteError(Exception):
    """The model gave logits that are not finite: inputs too large, or damaged weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Inputs that wait for their answer, and whose they are."""

    x: Array
    future: asyncio.Future[tuple[Array, tuple[int, ...]]]
    client: str


class Batcher:
    """Answers arrays (n, ...) from the live snapshot; `submit` belongs to one event loop.

    Args:
        most: inputs of a batch. waiting: inputs that may wait. count: called with the number of
            inputs of every batch answered, from the thread that infers.
    """

    def __init__(
        self, live: Live, most: int, waiting: int, count: Callable[[int], None] = lambda _: None
    ) -> None:
        self._live, self._most, self._room, self._count = live, most, waiting, count
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left: Request | None = None
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self.batches = 0  # answered so far

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to answer what is submitted from `loop`."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End the thread once everything submitted is answered."""
        self._requests.put(None)
        self._thread.join()

    def submit(self, x: Array, client: str = "") -> asyncio.Future[tuple[Array, tuple[int, ...]]]:
        """Return a future of logits (n, classes) and of the generations that made them.

        Args:
            client: who asks. Here the newest generation alone answers everybody.

        Raises:
            BusyError: too many inputs wait.
        """
        assert self._loop is not None
        if self._room < len(x):
            raise BusyError
        self._room -= len(x)
        future: asyncio.Future[tuple[Array, tuple[int, ...]]] = self._loop.create_future()
        self._requests.put(Request(x, future, client))
        return future

    # --- the thread that infers ------------------------------------------------------------------

    def _run(self) -> None:
        while requests := self._gather():
            self._answer(requests)
            self.batches += 1
            self._count(sum(len(request.x) for request in requests))

    def _answer(self, requests: list[Request]) -> None:
        """Answer a batch."""
        snapshot = self._live.snapshot  # the whole batch is answered by this one
        answers = infer(snapshot, requests)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, requests, answers, (snapshot.number,))

    def _gather(self) -> list[Request]:
        """Wait for a request, then take what waits, as far as it fits a batch; []: stop."""
        first, self._left = self._left or self._requests.get(), None
        if first is None:
            return []
        requests, rows = [first], len(first.x)
        while rows < self._most:
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                break
            if request is None or rows + len(request.x) > self._most:
                self._left = request
                if request is None:
                    self._requests.put(None)  # stop after this batch
                break
            requests.append(request)
            rows += len(request.x)
        return requests

    def _deliver(
        self,
        requests: list[Request],
        answers: list[Array | Exception],
        numbers: tuple[int, ...],
    ) -> None:
        for request, logits in zip(requests, answers, strict=True):
            self._room += len(request.x)
            if request.future.done():  # its client has gone, or its time is over
                continue
            if isinstance(logits, Exception):
                request.future.set_exception(logits)
            else:
                request.future.set_result((logits, numbers))


def infer(snapshot: Snapshot, requests: list[Request]) -> list[Array | Exception]:
    """Answer requests as one batch; if that fails, one by one, so that each fails for itself."""
    if len(requests) == 1:
        return [_predict(snapshot, requests[0].x)]
    logits = _predict(snapshot, np.concatenate([request.x for request in requests]))
    if isinstance(logits, Exception):
        return [_predict(snapshot, request.x) for request in requests]
    answers: list[Array | Exception] = []
    begin = 0
    for request in requests:
        answers.append(logits[begin : begin + len(request.x)])
        begin += len(request.x)
    return answers


def _predict(snapshot: Snapshot, x: Array) -> Array | Exception:
    try:
        logits = snapshot.predict(x)
    except Exception as error:  # the user's model may raise anything; the service goes on
        return BrokenError(f"the model raised {type(error).__name__}")
    if not np.isfinite(logits).all():
        return NotFiniteError()
    return np.asarray(logits, np.float32)
