"""Where jobs run: local worker processes (one thread each), or in this very process.

An engine maps a picklable function over payloads and yields results as they finish. A cluster
engine fits behind the same two methods. It knows nothing of models.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol

from g2d.core.platforms import cores
from g2d.core.search_path import isolated_children
from g2d.core.workers import (
    WithoutMain,
    cause_of_death,
    check_main,
    mark_engine,
    pack_job,
    refuse_in_import,
    run_packed,
)
from g2d.errors import PopulationError

Work = Callable[[Any], Any]


class Engine(Protocol):
    """Runs independent jobs; results come back in any order with their job's position."""

    def run(self, work: Work, payloads: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield `(position, work(payload))` as jobs finish; payloads are made when needed."""
        ...

    def close(self) -> None:
        """Stop every worker now; jobs that are running are lost."""
        ...


class SerialEngine:
    """Runs jobs one after the other in this process."""

    def run(self, work: Work, payloads: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield `(position, work(payload))` in order."""
        for position, payload in enumerate(payloads):
            yield position, work(payload)

    def close(self) -> None:
        """Do nothing: there is no worker."""

    def __enter__(self) -> SerialEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalEngine:
    """Worker processes on this machine, one torch thread each.

    Workers ignore Ctrl-C (the parent decides) and end by themselves within a second when the parent
    has gone, whatever killed it.
    """

    def __init__(self, workers: int = 0) -> None:
        self._count = workers or cores()
        self._flying: dict[Future[Any], int] = {}
        self._pools: dict[bool, ProcessPoolExecutor] = {}  # by whether workers import `__main__`

    def run(self, work: Work, payloads: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield `(position, work(payload))` as jobs finish; no more are in flight than workers.

        Raises:
            PopulationError: a job cannot travel to a worker, or a worker process died; of what.
            WorkerError: a job raised what cannot travel; else whatever the job itself raised.
        """
        refuse_in_import()
        waiting = enumerate(payloads)
        flying: dict[Future[Any], int] = {}
        self._flying = flying
        try:
            while True:
                for position, payload in itertools.islice(waiting, self._count - len(flying)):
                    flying[self._submit(work, payload)] = position
                if not flying:
                    return
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    yield flying.pop(future), future.result()
        except BrokenProcessPool as error:
            raise PopulationError(
                f"{self._autopsy()}. What is complete is kept: run the same command again"
            ) from error

    def _submit(self, work: Work, payload: Any) -> Future[Any]:
        data, names = pack_job((work, payload))
        if names:
            check_main(names)
        with_main = bool(names)
        with isolated_children():  # a job may start a worker, the first one a helper, too
            if with_main not in self._pools:
                mark_engine()
                context = multiprocessing.get_context("spawn") if with_main else WithoutMain()
                self._pools[with_main] = ProcessPoolExecutor(
                    self._count, context, _start_worker, (os.getpid(),)
                )
            return self._pools[with_main].submit(run_packed, data)

    def _autopsy(self) -> str:
        """What a worker died of, once all of its pool have ended; the pool is given up."""
        for with_main, pool in self._pools.items():
            processes = list((pool._processes or {}).values())
            if pool._broken:
                pool.shutdown(wait=True)
                del self._pools[with_main]
                return cause_of_death([process.exitcode for process in processes], with_main)
        return cause_of_death((), False)

    def close(self) -> None:
        """Stop the workers; jobs that are running are lost, and their workers killed."""
        busy = any(not future.done() for future in self._flying)
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            for process in list((pool._processes or {}).values()) if busy else ():
                process.kill()
            # In peace where nothing runs, so that libraries in workers can tidy up.
            pool.shutdown(wait=True, cancel_futures=busy)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def configure_threads(threads: int = 1) -> None:
    """Set this process up for training: few threads, and memory that stays.

    On a busy machine more threads were up to 60 times slower. And glibc returns blocks of more than
    128 KiB, such as a layer's activations, after each use: page faults then took 45 % of the time
    of a small network's training.
    """
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc: nothing to set
        libc = ctypes.CDLL(None)
        for parameter, size in _MALLOC:
            libc.mallopt(parameter, size)


# M_MMAP_THRESHOLD (the most that glibc takes), M_TRIM_THRESHOLD, M_TOP_PAD; bytes.
_MALLOC = ((-3, 32 * 2**20), (-1, 2**30), (-2, 64 * 2**20))


def _start_worker(parent: int) -> None:
    configure_threads()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    began = multiprocessing.parent_process()  # on Windows a dead parent's number stays
    while os.getppid() == parent and (began is None or began.is_alive()):
        time.sleep(0.5)
    os._exit(1)
