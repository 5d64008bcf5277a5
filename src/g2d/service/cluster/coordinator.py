"""The coordinator: one process beside the vault that owns the schedule, the worker and the ledger.

It makes, gates, signs and commits through the parts that serve one machine (`Rotation`, `Worker`,
`VaultLoader`), and tells replicas by long polls. It holds no state that the vault does not: after a
crash a new one reads the ledger and goes on. Knows no Ray; `deployment` makes an actor of it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2d.errors import G2DError
from g2d.rotation.events import Event, Swap
from g2d.service.assembly import rotate_vault
from g2d.service.cluster.lease import (
    AnnouncedGeneration,
    CoordinatorUpdate,
    Happened,
    ReplicaReport,
    Tally,
    Terms,
)
from g2d.service.cluster.mirror import GenerationBytes, VaultIdentity, identify, pack
from g2d.service.cluster.rollout import RolloutLoader, Roster
from g2d.service.http.events import ReplicaJoined, RolledOut, Stopping
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from g2d.service.http.startup import refuse_policy_on_ray
from g2d.service.loader import VaultLoader
from g2d.service.opening import open_live
from g2d.vault.keys import VerifyKey
from g2d.vault.vault import Vault

_KEPT = 512  # events that a replica which was away may still hear
_QUIET = (ReplicaJoined, RolledOut)  # for the operator; a thousand replicas' joining
# would wake a thousand polls each time
_STATUS = 0.25  # seconds that a status is good for: every poll carries it


@dataclass(frozen=True)
class Plan:
    """What the coordinator is to serve; everything that it needs to start again."""

    vault: Path
    options: Options
    terms: Terms
    data: str = ""
    key: VerifyKey | None = None
    served: Path | None = None


class Coordinator:
    """Owns a vault's rotation and tells replicas what is live; its methods are called from afar.

    Args:
        store: puts a generation's bytes where replicas can fetch them; returns what says where,
            which travels to them as `AnnouncedGeneration.place`.
    """

    def __init__(self, plan: Plan, store: Callable[[GenerationBytes], Any]) -> None:
        self._plan, self._store, self._stopping, self._log = plan, store, False, Log()
        self._term, self._sequence, self._happened = secrets.token_hex(8), 0, 0
        self._status: tuple[float, dict[str, Any]] = (-math.inf, {})
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._events: deque[tuple[int, Happened]] = deque(maxlen=_KEPT)
        self._mutex = threading.Lock()
        self._announced: dict[int, AnnouncedGeneration] = {}
        self._roster, self._tally = Roster(plan.terms, self._tell), Tally()
        self._failed = "the coordinator is starting"
        self._try()
        if self._failed:
            threading.Thread(target=self._retry, daemon=True).start()

    def _try(self) -> None:
        try:
            self._open()
            self._failed = ""
        except G2DError as error:
            self._failed = str(error)

    def _retry(self) -> None:
        """A vault that cannot be read as a restarted coordinator looks may be readable later."""
        while self._failed and not self._stopping:
            time.sleep(self._plan.terms.lease)
            self._try()

    def _open(self) -> None:
        plan, options = self._plan, self._plan.options
        loader = VaultLoader(
            plan.vault, options.name, plan.data, plan.key, plan.served, layout=options.layout
        )
        serving = options.serving(loader.serving)
        refuse_policy_on_ray(serving)
        self._live, warning, *_ = open_live(loader, serving, plan.vault)
        self._reader = Vault.open(plan.vault)
        self._identity = identify(self._reader)
        rollout = RolloutLoader(loader, self._roster, self._announce, lambda: self._stopping)
        self._rotation = rotate_vault(
            plan.vault, loader, self._live, options, self._tell, plan.data, rollout
        )
        self._announce(self._live.number)
        if warning:
            self._rotation.alarm(warning.reason, str(warning))
        self._rotation.start()
        threading.Thread(target=self._watch_lateness, daemon=True).start()

    # --- called from afar ------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Say why nothing can be served, "" if it can; and what is live."""
        return self._failed, 0 if self._failed else self._live.number

    async def identity(self) -> VaultIdentity:
        """Describe the vault, for a replica's mirror."""
        self._needed()
        return self._identity

    async def watch(self, report: ReplicaReport) -> CoordinatorUpdate:
        """Answer at once if something happened since `report`, else after a beat at most."""
        self._needed()
        self._loop = asyncio.get_running_loop()
        if report.replica:
            self._roster.greet(report)
            if fresh := self._tally.fresh(report, self._term):
                self._rotation.count(fresh)
        until = time.monotonic() + self._plan.terms.beat
        while report.term == self._term and report.sequence >= self._sequence:
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                break
        return self._update(report)

    async def note(self, report: ReplicaReport) -> None:
        """Take what a replica says between two polls: that it has loaded, refused or swapped."""
        self._roster.greet(report)

    async def leave(self, replica: str) -> None:
        """Forget a replica that ends."""
        self._roster.leave(replica)

    async def rotate(self) -> int | str:
        """Rotate on demand and see all replicas follow; the number then live, or why not."""
        self._needed()
        try:
            number = await asyncio.wrap_future(self._rotation.request())
        except G2DError as error:
            return str(error)
        await asyncio.to_thread(self._roster.await_rolled, number)
        return number

    async def pause(self, paused: bool) -> None:
        """Suspend rotation, or go on."""
        self._needed()
        self._rotation.pause(paused)

    async def alarm(
        self, kind: str, text: str, rotate: bool, more: Mapping[str, Any] | None = None
    ) -> None:
        """Take an alarm from a replica; `more`: what `RotationControl.alarm` takes by name."""
        self._needed()
        self._rotation.alarm(kind, text, rotate, **(more or {}))

    async def stop(self) -> None:
        """Stop rotation for good, and end the worker."""
        self._stopping = True
        if not self._failed:
            self._tell(Stopping(self._live.number))
            await asyncio.to_thread(self._rotation.stop)

    # --- telling ---------------------------------------------------------------------------------

    def _needed(self) -> None:
        if self._failed:
            raise G2DError(self._failed)

    def _announce(self, number: int) -> None:
        packed = pack(self._reader, number)
        announced = AnnouncedGeneration(number, packed.digest, self._store(packed))
        with self._mutex:
            live = self._live.number
            self._announced = {n: a for n, a in self._announced.items() if n == live}
            self._announced[number] = announced
        self._bump()

    def _tell(self, event: Event) -> None:
        """Take every event, from any thread; replicas and the operator hear it in order."""
        self._log(event.name, **event.facts())
        if isinstance(event, Swap):
            self._roster.roll(event.generation)
        loud = not isinstance(event, _QUIET)
        with self._mutex:
            self._sequence += loud
            self._happened += 1
            self._events.append((self._happened, Happened(time.time(), event)))
        if loud:
            self._wake()

    def _bump(self) -> None:
        with self._mutex:
            self._sequence += 1
        self._wake()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._changed.set)

    def _update(self, report: ReplicaReport) -> CoordinatorUpdate:
        known = report.event if report.term == self._term else 0
        with self._mutex:
            live = self._announced[self._live.number]
            spare = max(self._announced.values(), key=lambda announced: announced.number)
            events = tuple(
                happened
                for n, happened in self._events
                if n > known and not (report.replica and isinstance(happened.event, _QUIET))
            )
            ahead = spare if spare.number > live.number else None
            sequence, event = self._sequence, self._happened
        return CoordinatorUpdate(self._term, sequence, event, live, ahead, events, self._summary())

    def _summary(self) -> dict[str, Any]:
        """The status, made anew if it is too old or tells of another generation."""
        at, status = self._status
        number, now = self._live.number, time.monotonic()
        if now > at + _STATUS or status["generation"] != number:
            status = self._rotation.status()
            status["cluster"] = {"lease": self._plan.terms.lease, **self._roster.summary()}
            self._status = now, status
        return status

    def _watch_lateness(self) -> None:
        while not self._stopping:
            self._rotation.watch()
            time.sleep(1.0)
