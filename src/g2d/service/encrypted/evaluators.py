"""The service's side of its evaluators: a bounded queue, a thread and a process each.

A process, for TenSEAL holds Python's lock while it computes: beside the event loop it would hold up
every plain answer. What a process does is in `evaluator`. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from g2d.errors import UnavailableError
from g2d.rotation.snapshot import Live, Snapshot
from g2d.rotation.window import Window
from g2d.service.encrypted.process import DiedError, Process
from g2d.service.encrypted.spool import Spool
from g2d.service.http.limits import is_loopback

_SECONDS = 1.0
"""Seconds an answer is taken to need until one was measured; MNIST's network takes 0.25 CPU s."""
_LOOK = 0.1  # seconds between looks, as it ends, whether anybody waits


class BusyError(Exception):
    """Too many ciphertexts wait already. `own`: one client's are half of them; `wait`: seconds."""

    def __init__(self, own: bool, wait: float) -> None:
        super().__init__()
        self.own, self.wait = own, wait


class RefusedError(Exception):
    """What a client sent is no ciphertext, or no keys, of this plan; it says why."""


class GoneError(Exception):
    """The keys are not here any more."""


class BrokenError(Exception):
    """The evaluator died, took too long or raised; its kind is said, nothing of an input."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One generation, encoded in every evaluator for as long as somebody holds this."""

    token: str


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What one client waits for: keys to be read, or a ciphertext to be answered."""

    do: str
    keys: str
    file: Path
    query: bytes
    client: str
    future: asyncio.Future[tuple[bytes, tuple[int, ...]]] = field(repr=False)


def _chosen(live: Live, client: str) -> Snapshot:
    """The generation that answers a client now, by a policy that does not look at inputs."""
    if isinstance(live, Window):
        (chosen,) = live.choose(client, b"")
        return chosen
    return live.snapshot


class Evaluators:
    """Processes that evaluate ciphertexts by the live generation; `submit` is one event loop's.

    A request's generation is chosen when its evaluation begins, and answers it to the end, as a
    batch of plain ones: the last that holds a generation frees it (`Encoded`).

    Args:
        plan: in JSON. processes: how many. most: ciphertexts that wait or are evaluated.
            patience: seconds after which a process counts as hung.
        count: called with the inputs of every answer, from a thread that waits for it.
    """

    def __init__(
        self,
        plan: str,
        processes: int,
        most: int,
        patience: float,
        count: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._spool = Spool()
        self.spool = self._spool.path
        self.most, self.count = most, count
        self._patience, self._waiting = patience, Counter[str]()
        self._seconds = _SECONDS
        self._weights: dict[str, bytes] = {}
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._known = threading.Lock()
        self._processes = [Process(plan, self.spool) for _ in range(processes)]
        self._threads: list[threading.Thread] = []
        self._busy: dict[Process, Job] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def encode(self, weights: bytes) -> Encoded:
        """Encode a generation's weights in every process, and keep them there; it takes a while.

        Args:
            weights: as a vault keeps them; what was verified.

        Raises:
            UnavailableError: no process could; another time one may.
        """
        made = Encoded(secrets.token_hex(8))
        with self._known:
            self._weights[made.token] = weights
        weakref.finalize(made, self._drop, made.token).atexit = False
        try:
            for process in self._processes:
                self._running(process)
                process.ensure(made.token, weights, self._patience)
        except DiedError as error:
            text = f"the weights cannot be encoded for ciphertexts: {error}"
            raise UnavailableError(text) from error
        return made

    def start(self, loop: asyncio.AbstractEventLoop, live: Live) -> None:
        """Begin to answer what is submitted from `loop`, by what is live."""
        self._loop = loop
        for process in self._processes:
            thread = threading.Thread(
                target=self._run, args=(process, live), name="encrypted", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End once everything submitted is answered, or nobody waits for it any more."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_LOOK)
                for process, job in list(self._busy.items()):
                    if job.future.done():  # given up when the service's time to drain was over
                        process.end()
        self.close()

    def close(self) -> None:
        """End the processes at once, and forget all keys."""
        for process in self._processes:
            process.end()
        self._spool.close()

    @property
    def waiting(self) -> int:
        """Ciphertexts that wait or are evaluated."""
        return self._waiting.total()

    # --- the event loop's side -------------------------------------------------------------------

    def read(self, keys: str, file: Path) -> asyncio.Future[tuple[bytes, tuple[int, ...]]]:
        """Return a future that is done once the keys in a file are found right.

        It raises `RefusedError` if they are not. Few wait: each has been uploaded.
        """
        return self._put("read", keys, file, b"", "")

    def submit(
        self, keys: str, file: Path, query: bytes, client: str
    ) -> asyncio.Future[tuple[bytes, tuple[int, ...]]]:
        """Return a future of the answer to a ciphertext, and of the generations that made it.

        Raises:
            BusyError: too many wait.
        """
        own = not is_loopback(client) and self._waiting[client] >= max(1, self.most // 2)
        if own or self.waiting >= self.most:
            raise BusyError(own, self._seconds * self.waiting / len(self._processes))
        self._waiting[client] += 1
        return self._put("evaluate", keys, file, query, client)

    def forget(self, keys: str) -> None:
        """Let go a client's keys."""
        for process in self._processes:
            process.send({"do": "forget", "keys": keys})

    def _put(
        self, do: str, keys: str, file: Path, query: bytes, client: str
    ) -> asyncio.Future[tuple[bytes, tuple[int, ...]]]:
        assert self._loop is not None
        future: asyncio.Future[tuple[bytes, tuple[int, ...]]] = self._loop.create_future()
        self._jobs.put(Job(do, keys, file, query, client, future))
        return future

    def _deliver(self, job: Job, answer: bytes | Exception, numbers: tuple[int, ...]) -> None:
        if job.do == "evaluate":
            self._waiting[job.client] -= 1
            if not self._waiting[job.client]:
                del self._waiting[job.client]
        if job.future.done():  # its client has gone, or its time is over
            return
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result((answer, numbers))

    # --- a thread for each process ---------------------------------------------------------------

    def _run(self, process: Process, live: Live) -> None:
        while (job := self._jobs.get()) is not None:
            self._work(process, live, job)
            del job  # a thread that waits for the next one holds neither weights nor a ciphertext

    def _work(self, process: Process, live: Live, job: Job) -> None:
        """Have a job done by what is live, and let go of that."""
        assert self._loop is not None
        answer: bytes | Exception = b""
        numbers: tuple[int, ...] = ()
        if not job.future.done():
            snapshot = _chosen(live, job.client)  # the whole request is answered by this one
            numbers = (snapshot.number,)
            self._busy[process] = job
            answer = self._attempt(process, job, snapshot.encrypted)
            del self._busy[process]
        if job.do == "evaluate" and numbers and not isinstance(answer, Exception):
            self.count(1)
        self._loop.call_soon_threadsafe(self._deliver, job, answer, numbers)

    def _attempt(self, process: Process, job: Job, held: Encoded | None) -> bytes | Exception:
        """What a process makes of a job; this thread outlives whatever happens over it."""
        try:
            return self._answer(process, job, held)
        except Exception as error:  # no memory for a process, say
            return BrokenError(f"the evaluator could not be asked: {type(error).__name__}")

    def _answer(self, process: Process, job: Job, held: Encoded | None) -> bytes | Exception:
        """What a process makes of a job; while it does, `held` is."""
        order = {"do": job.do, "keys": job.keys, "file": str(job.file)}
        try:
            self._running(process)
            if job.do == "evaluate":
                if held is None:
                    return BrokenError("the live generation is not encoded")
                process.ensure(held.token, self._weights[held.token], self._patience)
                order["token"] = held.token
            said, answer = process.ask(order, job.query, self._patience)
        except DiedError as error:
            return BrokenError(str(error))
        if "refused" in said:
            return RefusedError(str(said["refused"]))
        if "gone" in said:
            return GoneError()
        if "failed" in said:
            return BrokenError(f"the evaluator raised {said['failed']}")
        if job.do == "evaluate":
            self._seconds += 0.2 * (float(said["seconds"]) - self._seconds)
        return answer

    def _running(self, process: Process) -> None:
        """Start a process, unless it runs, with every generation that may answer.

        Raises:
            DiedError: it ended at once.
        """
        if not process.start():
            return
        with self._known:
            known = dict(self._weights)
        for token, weights in known.items():
            process.ensure(token, weights, self._patience)

    def _drop(self, token: str) -> None:
        """Nobody holds a generation any more; called from wherever the last one let it go."""
        self._weights.pop(token, None)
        for process in self._processes:
            process.send({"do": "forget", "token": token})
