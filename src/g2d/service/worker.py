"""The warm spare: a worker process at low priority that makes, gates, keeps and commits.

The worker holds the vault's writer's lock and, where generations are signed, is the only one that
reads the private key; the serving side only reads. They speak JSON lines over the worker's stdin
and stdout. Without its parent the worker ends. When to swap is decided in `rotation.scheduler`.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any

from g2d.core.platforms import Lines
from g2d.core.search_path import child_environment, search_path
from g2d.core.sources import Digests
from g2d.core.types import Values
from g2d.errors import G2DError, GenerationError, UnavailableError
from g2d.rotation.events import Alarm, Event, Refused, Tell, silent
from g2d.service.http.events import Hurried, Rejected, Signed
from g2d.service.renewing import Source
from g2d.vault.sources import source_of

if TYPE_CHECKING:
    from g2d.defence.defence import Defence
    from g2d.defence.gates import GateResult

NICE = 10
"""The worker's niceness where it may not idle: a tenth of the service's share of a core."""
_STARVED, _SHARE = 5.0, 0.2
"""Seconds after which a worker that got less than this share of a core is starved.

A worker starts under SCHED_IDLE, which runs when nobody else wants to: beside it the service's p99
was 1.3 times the steady one, beside one at niceness 10 or 19 1.4 times (two cores, load on one).
But on a saturated machine it would make nothing, so one that starves is replaced by one at `NICE`.
"""


class Worker:
    """A worker process as a `scheduler.SpareMaker`; started when needed, again after it has died.

    Args:
        vault: its folder. data: where the task's data lies; "": as the vault says. tell: hears of a
            candidate that is `Rejected`; of a kept generation that is `Refused`, for it cannot be
            read; of one that is exposed and cannot be read, as an `Alarm`. patience: seconds that a
            candidate may take before the worker counts as hung and is killed. task: the `source`
            that the vault's settings gave when the live generation was verified; with another the
            worker loads nothing, for that would run its code beside the signing key. code: the
            digests of that code, likewise.
    """

    def __init__(
        self,
        vault: Path,
        data: str = "",
        tell: Tell = silent,
        patience: float = 900.0,
        task: str = "",
        code: Digests = MappingProxyType({}),
    ) -> None:
        self._arguments = [str(vault), data, task, json.dumps(dict(code))]
        self._tell, self._patience = tell, patience
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._lines: Lines | None = None
        self._closed = self._hurried = False
        self._starting = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The worker's process id, None before it is needed."""
        return self._process.pid if self._process else None

    def make(self, after: int) -> int:
        """Make and keep the next generation above `after`, or judge anew one that is kept.

        Raises:
            GenerationError: no candidate passed, the vault cannot be written, the worker died or
                was too slow.
        """
        return self._ask({"do": "make", "after": after})

    def commit(self, number: int) -> None:
        """Log a kept generation as live.

        Raises:
            GenerationError: it was not logged, or, if the worker died, perhaps it was.
        """
        self._ask({"do": "commit", "number": number})

    def close(self) -> None:
        """End the worker; what it has kept and committed stays."""
        with self._starting:
            self._closed = True
            self._end()

    def _ask(self, what: Values) -> int:
        try:
            return self._ask_once(what)
        except _StarvedError:
            self._hurried = True
            with self._starting:
                self._end()
            self._tell(Hurried(f"the machine is busy: the worker runs at nice {NICE}"))
            return self._ask_once(what)

    def _ask_once(self, what: Values) -> int:
        process = self._running()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(what).encode() + b"\n")
            process.stdin.flush()
        except (OSError, ValueError):  # a closed pipe
            raise self._died(process) from None
        return self._listen(process)

    def _listen(self, process: subprocess.Popen[bytes]) -> int:
        """Read lines until the one that answers; rejected candidates are told on the way.

        What telling raises is raised once the worker has answered: it is sound, and what it says
        next must not be taken for the answer to another order.
        """
        untold: Exception | None = None
        while isinstance(said := self._hear(process), Event):
            try:
                self._tell(said)
            except Exception as error:
                untold = untold or error
        if isinstance(said, GenerationError):
            raise said
        if untold is not None:
            raise untold
        return said

    def _hear(self, process: subprocess.Popen[bytes]) -> Event | GenerationError | int:
        """Read what the worker says next; each candidate has its own time."""
        assert process.stdout is not None
        try:
            if self._lines is None or self._lines.stream is not process.stdout:
                self._lines = Lines(process.stdout)
            self._await_line(process, self._lines, time.monotonic() + self._patience)
            line = self._lines.read()
            if line:
                return _parse(line)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # a closed pipe; or what it said is not ours
        raise self._died(process)

    def _await_line(self, process: subprocess.Popen[bytes], lines: Lines, until: float) -> None:
        """Wait until the worker says something; give it up if it takes too long, or starves."""
        began, used = time.monotonic(), _cpu_seconds(process.pid)
        while not lines.ready(min(1.0, max(0.0, until - time.monotonic()))):
            now = time.monotonic()
            if now >= until:
                process.kill()
                raise GenerationError(
                    f"the worker took more than {self._patience:g} s and was ended; allow it more"
                    " time, or fewer steps in [guidance]"
                )
            got = _cpu_seconds(process.pid) - used
            if not self._hurried and now - began > _STARVED and got < _SHARE * (now - began):
                raise _StarvedError

    def _running(self) -> subprocess.Popen[bytes]:
        with self._starting:
            if self._closed:
                raise GenerationError("the worker is closed")
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the worker)
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "g2d.service.worker",
                     json.dumps(search_path()), *self._arguments],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
                    bufsize=0, env=_environment(),
                    process_group=0,  # Ctrl-C in a terminal is for the service alone
                )  # fmt: skip
                # Windows has no niceness: the worker then runs beside the service as an equal.
                with suppress(ProcessLookupError, AttributeError):
                    os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)
                    if not self._hurried and hasattr(os, "SCHED_IDLE"):
                        os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))
            return self._process

    def _died(self, process: subprocess.Popen[bytes]) -> GenerationError:
        process.kill()
        code = process.wait()
        said = ""
        with suppress(OSError, ValueError):
            if self._said is not None:
                self._said.seek(0)
                said = " ".join(self._said.read()[-400:].decode(errors="replace").split())
        tail = f" Its last words: {said}" if said else ""
        return GenerationError(
            f"the worker that makes the spare died (exit code {code}); a new one is started.{tail}"
        )

    def _end(self) -> None:
        """End the worker, if there is one, and close what was open to it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, self._said):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            self._said = None


_TOLD: Mapping[str, type[Event]] = {kind.name: kind for kind in (Alarm, Refused, Rejected, Signed)}
"""What a worker tells while it is at work."""


def _parse(line: bytes) -> Event | GenerationError | int:
    """What a worker's line says: what happened, why it failed, or the number that is done."""
    said: dict[str, Any] = json.loads(line)
    if "told" in said:
        return _TOLD[said["told"]].of(said["facts"])
    if "failed" in said:
        return GenerationError(str(said["failed"]))
    return int(said["done"])


class _StarvedError(Exception):
    """The worker gets too little of a core."""


def _cpu_seconds(process: int) -> float:
    """CPU seconds of a process so far; infinite where they cannot be known: nothing starves."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return math.inf


def _environment() -> dict[str, str]:
    """The worker's: one thread, and nothing of what admits an admin."""
    kept = {name: value for name, value in os.environ.items() if name != "G2D_ADMIN_TOKEN"}
    return child_environment(kept) | {"OMP_NUM_THREADS": "1"}


# --- in the worker process -----------------------------------------------------------------------


def work(folders: str, vault: str, data: str, task: str, code: str) -> None:
    """Do what the parent asks, until it has gone; every failure is an answer.

    Args:
        folders: what `sys.path` is to be, in JSON. code: see `Worker`, in JSON.
    """
    sys.path[:] = json.loads(folders)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()

    def answer(**facts: Any) -> None:
        out.write(json.dumps(facts) + "\n")

    def tell(event: Event) -> None:
        answer(told=event.name, facts=event.facts())

    def damaged(number: int, text: str) -> None:
        tell(Alarm("vault", f"gates and guidance count generation {number} no more: {text}"))

    first = orders.get()
    try:
        from g2d.core.engine import configure_threads
        from g2d.defence.defence import Defence

        configure_threads()
        defence = Defence.open(vault, data=data, named=task, code=json.loads(code))
        defence.on_damage = damaged
    except Exception as error:
        answer(failed=_words(error))
        return
    with defence:
        order, failed, source = first, set[int](), Source(defence, tell)
        while True:
            try:
                source.look(order)
                answer(done=_obey(source.defence, order, tell, failed))
            except Exception as error:
                answer(failed=_words(error))
            order = orders.get()


def _read_orders(orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        orders.put(json.loads(line))
    os._exit(0)  # the parent has gone, whatever killed it; what is half done has no row


def _obey(defence: Defence, order: Values, tell: Tell, failed: set[int]) -> int:
    if order["do"] == "commit":
        defence.vault.activate(int(order["number"]))
        return int(order["number"])
    kept = _kept(defence, int(order["after"]), tell, failed)
    if kept is not None:
        return kept
    number = defence.vault.next_number()
    (made,) = defence.generate(
        activate=False, on_reject=lambda results: tell(_rejected(number, results))
    )
    if signer := made.manifest.get("signer"):
        tell(Signed(made.number, str(signer)))
    return made.number


def _kept(defence: Defence, after: int, tell: Tell, failed: set[int]) -> int | None:
    """The oldest generation above `after` that is kept and passes its gates as of now.

    A spare that a killed service left, or one made ahead with `g2d generate --keep`. One that has
    failed joins `failed` and is judged no more: exposures only grow. One that cannot be read does
    too: it must not hold up those that can be made.
    """
    exposed = defence.exposed()
    recent = defence.recent(exposed)
    for number in sorted(set(defence.vault.numbers(after)) - failed):
        try:
            kept = defence.generation(number)
            if source_of(kept.manifest) != defence.vault.source:
                continue  # another population's: see `renewing`
            state = kept.state
            results = defence.judge(state, recent, exposed)
        except (UnavailableError, MemoryError):
            raise
        except Exception as error:  # whatever somebody put there, the next one is made
            failed.add(number)
            tell(Refused(generation=number, reason="unreadable", text=_words(error)))
            continue
        if all(result.passed for result in results):
            return number
        failed.add(number)
        tell(_rejected(number, results))
    return None


def _rejected(number: int, results: list[GateResult]) -> Rejected:
    failed = (
        {key: _finite(value) for key, value in result.entry().items()}
        for result in results
        if not result.passed
    )
    return Rejected(number, tuple(failed))


def _finite(value: Any) -> Any:
    """NaN and infinity, which a bad candidate may well measure, are no JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, G2DError) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    work(*sys.argv[1:6])
