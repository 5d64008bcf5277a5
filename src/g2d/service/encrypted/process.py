"""One evaluator's process: started, asked by several threads at once, ended if it hangs."""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from g2d.core.search_path import child_environment, search_path
from g2d.service.encrypted import frames

NICE = 5
"""An evaluator's niceness: a third of the share of a core that plain answers get beside it."""

_Reply = tuple[dict[str, Any], bytes]
_Order = tuple[dict[str, Any], bytes] | None


class DiedError(Exception):
    """A process ended, or was ended, before it answered."""


class _Run:
    """One life of a process: what it was sent, who waits for what."""

    def __init__(self, arguments: list[str]) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "g2d.service.encrypted.evaluator", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said,
            env=_environment(),
            process_group=0,  # Ctrl-C in a terminal is for the service alone
        )  # fmt: skip
        with suppress(OSError, AttributeError):  # Windows has no niceness
            os.setpriority(os.PRIO_PROCESS, self.process.pid, NICE)
        self.orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self.waiting: dict[int, Future[_Reply]] = {}
        self.encoded: dict[str, Future[_Reply]] = {}
        self.ended = False
        self.mutex = threading.Lock()
        for work in (self._write, self._read):
            threading.Thread(target=work, name="evaluator", daemon=True).start()

    def ask(self, order: dict[str, Any], payload: bytes) -> Future[_Reply]:
        """Send an order; the future is of what comes of it."""
        future = Future[_Reply]()
        with self.mutex:
            if self.ended:
                future.set_exception(DiedError("the evaluator died"))
                return future
            self.waiting[int(order["id"])] = future
        self.orders.put((order, payload))
        return future

    def _write(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended: who waits is told by `_read`
            while (order := self.orders.get()) is not None:
                frames.write(self.process.stdin, *order)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with suppress(OSError, ValueError, KeyError, TypeError):
            while (message := frames.read(self.process.stdout)) is not None:
                with self.mutex:
                    future = self.waiting.pop(int(message[0]["id"]), None)
                if future is not None:
                    future.set_result(message)
        self.process.kill()
        code = self.process.wait()
        with self.mutex:
            self.ended = True
            left, self.waiting = list(self.waiting.values()), {}
        error = DiedError(f"the evaluator died (exit code {code}).{self._last_words()}")
        for future in left:
            future.set_exception(error)
        self.orders.put(None)
        for pipe in (self.process.stdin, self.process.stdout, self.said):
            with suppress(OSError):
                _close(pipe)

    def _last_words(self) -> str:
        with suppress(OSError, ValueError):
            self.said.seek(0)
            words = " ".join(self.said.read()[-400:].decode(errors="replace").split())
            return f" Its last words: {words}" if words else ""
        return ""


class Process:
    """An evaluator, whichever process that is by now; safe to call from many threads.

    Args:
        plan: in JSON. spool: folder of keys, which goes with it where we are killed.
    """

    def __init__(self, plan: str, spool: Path) -> None:
        self._plan, self._spool = plan, spool
        self._ids, self._starting = itertools.count(), threading.Lock()
        self._run: _Run | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Its process id; None before it is needed."""
        return self._run.process.pid if self._run else None

    def start(self) -> bool:
        """Start it unless it runs; return whether it had to be.

        Raises:
            DiedError: it was ended for good.
        """
        with self._starting:
            if self._closed:
                raise DiedError("the evaluator is closed")
            if self._run is not None and not self._run.ended:
                return False
            self._run = _Run([json.dumps(search_path()), str(self._spool)])
            self._run.orders.put(({}, self._plan.encode()))
            return True

    def send(self, order: Mapping[str, Any]) -> None:
        """Tell it something that has no answer, if it runs; never waits."""
        run = self._run
        if run is not None and not run.ended:
            if "token" in order:
                run.encoded.pop(order["token"], None)
            run.orders.put((dict(order), b""))

    def ask(self, order: Mapping[str, Any], payload: bytes, patience: float) -> _Reply:
        """Have something done, and wait for it.

        Raises:
            DiedError: it ended over it, or took more than `patience` seconds and was ended.
        """
        run = self._run
        assert run is not None
        return _wait(run, run.ask({"id": next(self._ids), **order}, payload), patience)

    def ensure(self, token: str, weights: bytes, patience: float) -> None:
        """Have a generation encoded, unless it is, and wait until it is.

        Raises:
            DiedError: as `ask`; or it could not encode it.
        """
        run = self._run
        assert run is not None
        with run.mutex:
            found = run.encoded.get(token)
            if fresh := found is None:
                found = run.encoded[token] = Future()
        if fresh:
            try:
                found.set_result(self.ask({"do": "encode", "token": token}, weights, patience))
            except DiedError as error:
                found.set_exception(error)
        said, _ = _wait(run, found, patience)
        if told := said.get("refused") or said.get("failed"):
            run.encoded.pop(token, None)
            raise DiedError(f"the evaluator refused: {told}")

    def end(self) -> None:
        """End it for good."""
        with self._starting:
            self._closed = True
            if self._run is not None:
                self._run.process.kill()
                self._run.process.wait()


def _wait(run: _Run, future: Future[_Reply], patience: float) -> _Reply:
    try:
        return future.result(patience)
    except TimeoutError:
        run.process.kill()
        raise DiedError(f"the evaluator took more than {patience:g} s and was ended") from None


def _environment() -> dict[str, str]:
    """The process's: one thread, and nothing of what admits an admin or opens a vault."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("G2D_ADMIN_TOKEN", "G2D_CUSTODIAN")
    }
    return child_environment(kept) | {"OMP_NUM_THREADS": "1"}


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        pipe.close()
