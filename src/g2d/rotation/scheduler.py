"""When a service rotates: triggers, a warm spare made before it is due, backoff. No HTTP, no torch.

`Rotation` swaps from a thread of its own; where spares come from (`SpareMaker`) and how the serving
side reads them (`GenerationLoader`) are protocols. What a swap is, is in `snapshot`.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from g2d.errors import G2DError, GenerationError, UnavailableError, VaultError
from g2d.rotation.events import (
    Alarm,
    Committed,
    Failed,
    Level,
    Paused,
    Refused,
    Resumed,
    Spare,
    Swap,
    Tell,
    silent,
)
from g2d.rotation.following import Following
from g2d.rotation.snapshot import Live, Snapshot
from g2d.rotation.triggers import AlarmBudget, Backoff, Triggers


class SpareMaker(Protocol):
    """Where the next generation is made before it is due; `spare.Worker` is one.

    Both calls block, and raise a `G2DError` where they cannot deliver: nothing is live then that
    was not before.
    """

    def make(self, after: int) -> int:
        """Make, gate and keep a generation whose number is above `after`; return its number."""
        ...

    def commit(self, number: int) -> None:
        """Log a kept generation as live."""
        ...

    def close(self) -> None:
        """Stop making; a call that blocks raises."""
        ...


class GenerationLoader(Protocol):
    """Where the serving side reads generations; it trusts nothing that it has not verified."""

    def live(self) -> int:
        """Return the number that was committed last."""
        ...

    def load(self, number: int, after: int) -> Snapshot:
        """Verify and load a generation newer than `after`, ready to answer at full speed."""
        ...

    def verify(self, number: int, after: int) -> None:
        """Raise a `VaultError` unless the generation may be live now."""
        ...


GRACE = 30.0
"""Seconds that a rotation may be overdue before that is an alarm."""


class Rotation:
    """Keeps a spare warm and swaps it in when it is due, from one thread of its own.

    A swap never waits for generation: what is due without a spare waits for one, while the live
    generation answers. Several reasons that are due together cause one rotation.

    Args:
        tell: called with each of `events`, from any thread. chance: draws jitter; the default is
            secret. unready: why what is live should not be, although it is served; "": it should.
            budget: of rotations that alarms of queries may cause. missed: loads what somebody else
            committed before a number and after what is live; may raise as `loader` does.
    """

    def __init__(
        self,
        live: Live,
        maker: SpareMaker,
        loader: GenerationLoader,
        triggers: Triggers,
        tell: Tell = silent,
        chance: random.Random | None = None,
        backoff: Backoff | None = None,
        unready: Callable[[], str] = str,
        budget: AlarmBudget | None = None,
        missed: Callable[[int], Iterable[Snapshot]] = lambda _: (),
    ) -> None:
        self._budget, self._missed = budget or AlarmBudget(), missed
        self._ledger = Following(live, loader, unready, tell)
        self._live, self._maker, self._loader = live, maker, loader
        self._triggers, self._tell = triggers, tell
        self._chance = chance or random.SystemRandom()
        self._backoff = backoff or Backoff()
        self._wake, self._counting = threading.Condition(), threading.Lock()
        self._due: list[str] = []
        self._asked: list[Future[int]] = []
        self._paused = self._stopping = False
        self._failures, self._refused, self._answered = 0, 0, 0
        self._due_at, self._warned = math.inf, False
        self._spare: Snapshot | None = None
        self._since = time.monotonic()
        self._at = self._draw(self._since, self._triggers.every)
        self._enough = self._draw(0.0, self._triggers.queries)
        self._thread = threading.Thread(target=self._run, name="rotation", daemon=True)

    @property
    def live(self) -> int:
        """Number of the live generation."""
        return self._live.number

    def start(self) -> None:
        """Begin to prepare the first spare."""
        self._thread.start()

    def stop(self) -> None:
        """Stop for good; the live generation goes on answering."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._maker.close()
        if self._thread.is_alive():
            self._thread.join()
        self._answer_asked(GenerationError("the service is stopping; ask the next one"))

    def request(self) -> Future[int]:
        """Ask for a rotation as soon as there is a spare; the result is the number then live.

        The future raises `GenerationError` or `VaultError` if rotation is paused, the spare is
        refused or none can be made: the live generation stays.
        """
        future: Future[int] = Future()
        with self._wake:
            if self._paused or self._stopping:
                what = "ending" if self._stopping else "paused; resume it first"
                future.set_exception(GenerationError(f"rotation is {what}"))
            else:
                self._asked.append(future)
                self._demand("demand")
        return future

    def alarm(
        self,
        kind: str,
        text: str,
        rotate: bool = True,
        *,
        level: Level = "warning",
        client: str = "",
        evidence: Mapping[str, float | str] | None = None,
    ) -> None:
        """Take an alarm from a monitor, and rotate away: see `RotationControl`.

        Alarms that queries may have caused rotate as often as `budget` allows. Those of damage are
        not bounded: what is live must not stay, and whoever spends the budget must not hold it.
        """
        alarm = Alarm(kind, text, level, client or None, evidence)
        self._tell(alarm)
        if rotate:
            with self._wake:
                # What is due already is one rotation with this, which costs no token.
                if not alarm.bought or self._due or self._budget.take(client):
                    self._demand(f"{'monitor' if alarm.closed else 'alarm'}: {kind}")

    def count(self, inputs: int) -> None:
        """Count answered inputs; about every `triggers.queries` of them a rotation is due."""
        with self._counting:  # by the thread that infers, and by those that await ciphertexts
            self._answered += inputs
            due = self._triggers.queries and self._answered >= self._enough
            if due:
                self._answered, self._enough = 0, self._draw(0.0, self._triggers.queries)
        if due:
            with self._wake:
                self._demand("queries")

    def pause(self, paused: bool = True) -> None:
        """Suspend rotation, or go on; the spare stays warm, and what falls due meanwhile waits."""
        with self._wake:
            changed, self._paused = self._paused != paused, paused
            self._wake.notify_all()
        if changed:
            self._tell(Paused() if paused else Resumed())

    def status(self) -> dict[str, Any]:
        """Say what is live, for how long, and what comes next; the jitter stays secret."""
        now, every = time.monotonic(), self._triggers.every
        with self._wake:
            return {
                "generation": self._live.number,
                "age": now - self._since,
                "countdown": max(0.0, self._since + every - now) if every else None,
                "every": every or None,
                "queries": self._triggers.queries or None,
                "answered": self._answered,
                "spare": self._spare.number if self._spare else None,
                "due": sorted(self._due),
                "late": self._late(now),
                "failures": self._failures,
                "paused": self._paused,
                "unready": self._ledger.unready() or None,
                "layout": self._live.snapshot.layout or None,
                "withheld": self._budget.withheld,
            }

    def watch(self) -> None:
        """Look at the ledger; raise an alarm, once, if a rotation is overdue by a period."""
        if newer := self._ledger.look():
            self._follow(newer)
        with self._wake:
            late = self._late(time.monotonic())
            warn = late > max(GRACE, self._triggers.every) and not self._warned
            self._warned |= warn
        if warn:
            text = f"a rotation is overdue by {late:.0f} s: there is no spare that may be live"
            self.alarm("late", text, rotate=False)

    def _late(self, now: float) -> float:
        """Seconds since a rotation fell due; the caller holds the lock."""
        at = min(self._due_at, self._at if self._triggers.every else math.inf)
        return 0.0 if self._paused or now <= at else now - at

    def _demand(self, reason: str) -> None:
        """Note a reason to rotate; the caller holds the lock."""
        if reason not in self._due:
            self._due.append(reason)
            self._due_at = min(self._due_at, time.monotonic())
        self._wake.notify_all()

    # --- the rotation thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                spare = self._spare = self._prepare()
                if self._await_due(spare):
                    self._rotate(spare)
            except Exception as error:  # whatever happens here, the live generation goes on
                try:
                    self._fail(error)
                except Exception:  # and so does this thread, even if telling fails
                    time.sleep(self._backoff.first)

    def _prepare(self) -> Snapshot:
        began, live = time.monotonic(), self._live.number
        number = self._maker.make(max(live, self._refused))
        made = time.monotonic()
        try:
            spare = self._loader.load(number, live)
        except VaultError as error:
            self._refuse(number, error)
            raise
        took = {"make": made - began, "load": time.monotonic() - made}
        self._tell(Spare(number, took))
        return spare

    def _await_due(self, spare: Snapshot) -> bool:
        """Wait until a rotation is due and allowed; False: the service stops, or has followed."""
        with self._wake:
            while not self._stopping and self._spare is spare and spare.number > self._live.number:
                wait = None
                if self._triggers.every and not self._paused and not self._due:
                    wait = self._at - time.monotonic()
                    if wait <= 0:
                        self._due.append("schedule")
                if self._due and not self._paused:
                    return True
                self._wake.wait(wait)
        return False

    def _rotate(self, spare: Snapshot) -> None:
        began, before = time.monotonic(), self._live.number
        try:
            self._loader.verify(spare.number, before)
            if spare.check and (changed := spare.check()):
                raise VaultError(
                    f"generation {spare.number} changed in memory ({', '.join(changed)}) before it"
                    " was live: look for faulty memory. It will be made anew."
                )
        except VaultError as error:
            self._refuse(spare.number, error)
            raise
        with self._ledger.committing(spare.number):
            self._commit(spare.number)
            self._tell(Committed(spare.number))
            self._swap(spare, began)

    def _follow(self, number: int) -> None:
        """Take what somebody else committed: a retired generation is not served on.

        By the thread that watches: ours may be waiting for a worker that has no lock.
        """
        began, live = time.monotonic(), self._live.number
        try:
            for earlier in self._missed(number):
                self._tell(Committed(earlier.number))
                self._swap(earlier, began, ("ledger",))
            fresh = self._loader.load(number, self._live.number)
        except UnavailableError:
            return  # the next look tries again
        except VaultError as error:
            if number > self._live.number:  # else ours was quicker
                self._ledger.skip(number)
                with self._wake:  # what comes after it is made all the same
                    self._spare, self._refused = None, max(self._refused, number)
                    self._wake.notify_all()
                reason = str(getattr(error, "reason", "unreadable"))
                self._tell(Refused(generation=number, reason=reason, text=str(error), live=live))
            return
        if number > self._live.number:
            self._tell(Committed(number))  # by another: it is remembered as ours are
        self._swap(fresh, began, ("ledger",))

    def _swap(self, fresh: Snapshot, began: float, why: tuple[str, ...] = ()) -> None:
        """Answer from a generation that is committed; whatever was due is done with it."""
        with self._wake:
            before = self._live.number
            if fresh.number <= before:
                return  # the other thread was quicker
            self._live.swap(fresh)
            self._wake.notify_all()
            reasons, self._due = (*sorted(self._due), *why), []
            asked, self._asked = self._asked, []
            self._spare, self._failures = None, 0
            self._due_at, self._warned = math.inf, False
            self._since = time.monotonic()
            self._at = self._draw(self._since, self._triggers.every)
        self._tell(Swap(fresh.number, before, reasons, self._since - began))
        for future in asked:
            _resolve(future, fresh.number)

    def _refuse(self, number: int, error: VaultError) -> None:
        """Never offer a generation again, unless it is the machine that could not read it."""
        if not isinstance(error, UnavailableError):
            self._refused = max(self._refused, number)

    def _commit(self, number: int) -> None:
        """Commit, and find out whether it happened if the worker died over it."""
        try:
            self._maker.commit(number)
        except G2DError:
            if self._loader.live() != number:
                raise

    def _fail(self, error: Exception) -> None:
        """Keep the live generation, say so, and wait longer after each failure in a row."""
        with self._wake:
            self._spare = None
            if self._stopping:
                return
            self._failures += 1
            wait = self._backoff.seconds(self._failures, self._chance)
        text = str(error) if isinstance(error, G2DError) else f"{type(error).__name__}: {error}"
        refused = isinstance(error, VaultError) and not isinstance(error, UnavailableError)
        reason = str(getattr(error, "reason", "unreadable" if refused else "none made"))
        live = self._live.number
        if refused:
            self._tell(Refused(reason=reason, text=text, live=live, retry=wait))
        else:
            self._tell(Failed(reason, text, live, wait))
        self._answer_asked(error if isinstance(error, G2DError) else GenerationError(text))
        until = time.monotonic() + wait
        with self._wake:
            while not (self._stopping or self._asked) and time.monotonic() < until:
                self._wake.wait(until - time.monotonic())

    def _answer_asked(self, error: Exception) -> None:
        with self._wake:
            asked, self._asked = self._asked, []
            self._due = [reason for reason in self._due if reason != "demand"]
        for future in asked:
            _resolve(future, error)

    def _draw(self, since: float, mean: float) -> float:
        """When the next rotation is due, in seconds or in inputs."""
        jitter = self._triggers.jitter
        return since + mean * self._chance.uniform(1 - jitter, 1 + jitter)


def _resolve(future: Future[int], result: int | Exception) -> None:
    """Answer one who asked, unless they have gone."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
