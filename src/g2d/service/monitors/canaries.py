"""Asks what is live its own canaries, on a schedule: whatever makes it answer otherwise is found.

The watch over memory (`memory`) sees that bytes changed; this one sees what comes out, also where
the arithmetic fails or the watched bytes are not those that answer.
"""

from __future__ import annotations

import time
from typing import Protocol

from g2d.errors import G2DError
from g2d.protect.canaries.kept import Canaries, judge_scores
from g2d.rotation.control import RotationControl
from g2d.rotation.snapshot import Live, Snapshot
from g2d.service.http.metrics import Metrics
from g2d.service.monitors.memory import SoundCopies, replace

KIND = "canary"
"""The kind of its alarms."""


class KeptCanaries(SoundCopies, Protocol):
    """Where the canaries of what is live come from, beside sound copies of it."""

    @property
    def canary_every(self) -> float:
        """Seconds between checks; 0: never."""
        ...

    def canaries(self, number: int) -> Canaries | None:
        """A generation's canaries, verified; None: it keeps none; `G2DError`: they are damaged."""
        ...


class CanaryWatch:
    """Compares live answers to canaries with those kept; what differs is replaced, with an alarm.

    The forward pass of a few inputs on the watch's own thread: an answer waits for it at most.

    Where a fresh copy answers otherwise, too, it is this machine that differs. That is told once,
    and counted from then on, whatever generations come; one that it has answered soundly is
    watched as elsewhere.
    """

    def __init__(
        self, live: Live, loader: KeptCanaries, rotation: RotationControl, metrics: Metrics
    ) -> None:
        self._live, self._loader, self._rotation = live, loader, rotation
        self._count = metrics.canaries
        self._every = loader.canary_every
        self._due = time.monotonic() + self._every
        self._kept: dict[int, Canaries | None] = {}  # of what answers, by number
        self._unread: set[int] = set()  # those whose canaries could not be read, which is told
        self._sound: set[int] = set()  # those that have been answered soundly here
        self._differs = False  # this machine computes otherwise, which is told

    def watch(self) -> None:
        """Check if it is time."""
        if self._every and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._every
            self.check()

    def check(self) -> bool:
        """Ask all that answer, once; replace what answers otherwise, and rotate.

        Returns:
            False: one did so. True: all are sound, or no more is known of them than was told.
        """
        snapshots = self._live.snapshots
        numbers = {snapshot.number for snapshot in snapshots}
        self._kept = {n: kept for n, kept in self._kept.items() if n in numbers}
        self._unread &= numbers
        self._sound &= numbers
        asked = [self._ask(snapshot) for snapshot in snapshots]  # all, whatever one of them says
        return all(asked)

    def _ask(self, snapshot: Snapshot) -> bool:
        """Ask one."""
        kept = self._canaries(snapshot.number)
        if kept is None:
            self._count.labels("none kept").inc()
            return True
        changed = _changed(kept, snapshot)
        if changed and self._differs and snapshot.number not in self._sound:
            self._count.labels("this machine differs").inc()
            return True
        self._count.labels("changed" if changed else "sound").inc()
        if changed:
            self._tell(kept, snapshot, changed)
        else:
            self._sound.add(snapshot.number)
        return not changed

    def _canaries(self, number: int) -> Canaries | None:
        if number not in self._kept:
            try:
                self._kept[number] = self._loader.canaries(number)
            except G2DError as error:  # of a moment, perhaps: they are read again next time
                if number not in self._unread:
                    self._unread.add(number)
                    text = f"generation {number} is not checked by canaries: {error}"
                    self._rotation.alarm(KIND, text, rotate=False)
                return None
        return self._kept[number]

    def _tell(self, kept: Canaries, snapshot: Snapshot, changed: str) -> None:
        what = f"generation {snapshot.number} answers {changed} otherwise"
        outcome = replace(self._live, self._loader, snapshot.number)
        same = [each for each in self._live.snapshots if each.number == snapshot.number]
        elsewhere = any(each is not snapshot and bool(_changed(kept, each)) for each in same)
        if elsewhere:
            # Rotating would not help: whoever makes the next one computes as the last one did.
            told, self._differs = self._differs, True
            self._sound.discard(snapshot.number)
            if told:
                return
            outcome = (
                "so does a fresh copy from the vault: this machine computes otherwise than the one"
                " that made it, or wrongly; from now on that is counted, and told no more"
            )
        self._rotation.alarm(KIND, f"{what}; {outcome}", rotate=not elsewhere)


def _changed(kept: Canaries, snapshot: Snapshot) -> str:
    """How many canaries are answered otherwise, in words; "": none is."""
    # How answers look must not decide: those of a network gone dead look like rounded ones.
    found = judge_scores(kept, snapshot.predict(kept.x), how="logits", rounded=False).changed
    return f"{len(found)} of {len(kept)} canaries" if found else ""
