"""Taking a generation to all replicas in two steps: who has loaded it, then who answers from it.

Step one: the spare is announced as soon as it is verified, and a commit waits, bounded, until every
replica with a lease has verified and loaded it. Step two: it is committed in the ledger, and what
is live is announced. No Ray, no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from g2d.errors import RefusedError
from g2d.rotation.events import Alarm, Tell
from g2d.rotation.scheduler import GenerationLoader
from g2d.rotation.snapshot import Snapshot
from g2d.service.cluster.lease import ReplicaReport, Terms
from g2d.service.http.events import ReplicaJoined, RolledOut

_SHOWN = 64  # replicas: every poll carries the status, and a thousand rows would be 100 KB


@dataclass(frozen=True)
class _Seen:
    report: ReplicaReport
    at: float


class Roster:
    """Which replicas there are, as their polls say. Safe to use from many threads.

    One that has not polled for a lease and a beat answers nobody by itself, and is not waited for.
    """

    def __init__(self, terms: Terms, tell: Tell, clock: Callable[[], float] = time.monotonic):
        self._terms, self._tell, self._clock = terms, tell, clock
        self._changed = threading.Condition()
        self._seen: dict[str, _Seen] = {}
        self._rolling: tuple[int, float] | None = None
        self._swept = float("-inf")

    def greet(self, report: ReplicaReport) -> None:
        """Note what a replica says of itself."""
        now = self._clock()
        with self._changed:
            self._forget(now)
            fresh = report.replica not in self._seen
            self._seen[report.replica] = _Seen(report, now)
            done = self._settled(now)
            self._changed.notify_all()
        if fresh:
            self._tell(ReplicaJoined(report.replica, report.live))
        if done:
            self._tell(done)

    def leave(self, replica: str) -> None:
        """Forget a replica that ends."""
        with self._changed:
            self._seen.pop(replica, None)
            self._changed.notify_all()

    def pending(self, number: int) -> list[str]:
        """Name the replicas that are still to load a generation, or to refuse it."""
        with self._changed:
            self._forget(self._clock())
            return [
                name
                for name, seen in self._seen.items()
                if seen.report.loaded != number
                and seen.report.live < number
                and number not in seen.report.refused
            ]

    def await_loaded(self, number: int, stopping: Callable[[], bool]) -> None:
        """Wait until no replica is still loading a generation, at most `terms.prepare` seconds.

        Raises:
            RefusedError: every replica that is there refused it. If only some did, the others go
                on, and those answer nobody once their generation is retired.
        """
        until = self._clock() + self._terms.prepare
        with self._changed:
            while self.pending(number) and self._clock() < until and not stopping():
                self._changed.wait(min(0.5, max(0.0, until - self._clock())))
            there = [seen.report for seen in self._seen.values()]
            late = self.pending(number)
            refused = {report.replica: report.refused[number] for report in there
                       if number in report.refused}  # fmt: skip
        if refused and len(refused) == len(there):
            text = next(iter(refused.values()))
            raise RefusedError(f"every replica refused generation {number}: {text}", "replicas",
                               number)  # fmt: skip
        for replica, text in refused.items():
            self._tell(Alarm("replica", f"{replica} refused: {text}"))
        if late:
            text = f"not loaded by {len(late)} of {len(there)} replicas: they fetch it when live"
            self._tell(Alarm("replica", f"generation {number} {text}"))

    def roll(self, number: int) -> None:
        """Begin to watch how the replicas take what is now live."""
        with self._changed:
            self._rolling = (number, self._clock())

    def await_rolled(self, number: int) -> bool:
        """Wait until every replica that is there answers from it, at most a lease."""
        until = self._clock() + self._terms.lease
        with self._changed:
            while True:
                now = self._clock()
                self._forget(now)
                if all(seen.report.live >= number for seen in self._seen.values()):
                    return True
                if now >= until:
                    return False
                self._changed.wait(until - now)

    def summary(self) -> dict[str, Any]:
        """What a status shows: how many replicas, and each one of them if they are few."""
        now = self._clock()
        with self._changed:
            self._forget(now)
            seen = list(self._seen.values())
        few = sorted(seen, key=lambda one: one.report.replica) if len(seen) <= _SHOWN else []
        newest = max((one.report.live for one in seen), default=0)
        behind = sum(one.report.live < newest for one in seen)
        rows = [
            {
                "replica": one.report.replica,
                "generation": one.report.live,
                "loaded": one.report.loaded or None,
                "heard": round(now - one.at, 3),
                **one.report.about,
            }
            for one in few
        ]
        return {"count": len(seen), "behind": behind, "replicas": rows}

    # --- the caller holds the lock ---------------------------------------------------------------

    def _forget(self, now: float) -> None:
        if now < self._swept + self._terms.beat / 4:  # a thousand replicas poll often
            return
        self._swept = now
        oldest = now - self._terms.lease - self._terms.beat
        self._seen = {name: seen for name, seen in self._seen.items() if seen.at >= oldest}

    def _settled(self, now: float) -> RolledOut | None:
        if self._rolling is None:
            return None
        number, since = self._rolling
        if any(seen.report.live < number for seen in self._seen.values()):
            return None
        self._rolling = None
        return RolledOut(number, len(self._seen), now - since)


class RolloutLoader:
    """Announces what it has loaded, and waits for replicas before a commit; a `GenerationLoader`.

    Args:
        announce: called with a generation that is verified here; it is sent to the replicas.
    """

    def __init__(
        self,
        loader: GenerationLoader,
        roster: Roster,
        announce: Callable[[int], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._loader, self._roster = loader, roster
        self._announce, self._stopping = announce, stopping

    def live(self) -> int:
        """Return the number that was committed last."""
        return self._loader.live()

    def load(self, number: int, after: int) -> Snapshot:
        """Verify and load a generation here, and announce it."""
        snapshot = self._loader.load(number, after)
        self._announce(number)
        return snapshot

    def verify(self, number: int, after: int) -> None:
        """Raise a `VaultError` unless it may be live now and some replica, if any, has taken it."""
        self._loader.verify(number, after)
        self._roster.await_loaded(number, self._stopping)
