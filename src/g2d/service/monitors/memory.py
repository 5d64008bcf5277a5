"""Watches the live weights in memory, heals them from the vault, and watches rotation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from g2d.errors import G2DError
from g2d.rotation.control import RotationControl
from g2d.rotation.snapshot import Live, Snapshot
from g2d.service.http.metrics import Metrics

_LOOK = 0.5  # seconds between looks at rotation and expiry


class SoundCopies(Protocol):
    """Where a sound copy of what is live comes from."""

    def again(self, number: int) -> Snapshot:
        """Load a generation anew, verified; raise a `G2DError` if that cannot be."""
        ...


def replace(live: Live, loader: SoundCopies, number: int) -> str:
    """Answer from a sound copy of what is live, and say how that went."""
    try:
        # A fresh copy and one assignment: no answer mixes healed tensors with damaged ones.
        healed = live.heal(loader.again(number))
    except Exception as error:  # whatever is wrong with the vault, it must be told
        said = f"NOT healed: {error if isinstance(error, G2DError) else type(error).__name__}"
        return f"{said}; newer ones answer in its place" if live.leave(number) else said
    return "healed from the vault" if healed else "it is not live any more"


class Monitor:
    """Checks what is live; a snapshot that changed is replaced by a sound copy, with an alarm.

    Args:
        every: seconds between checks; longer for a model so large that hashing costs over 1 %. now:
            seconds since 1970, by which generations expire. also: other watches, called as often.
    """

    def __init__(
        self,
        live: Live,
        loader: SoundCopies,
        rotation: RotationControl,
        metrics: Metrics,
        every: float,
        now: Callable[[], float] = time.time,
        also: Iterable[Callable[[], None]] = (),
    ) -> None:
        self._now, self._also = now, tuple(also)
        self._live, self._loader, self._rotation = live, loader, rotation
        self._metrics, self._every = metrics, every
        self._ending, self._expired = threading.Event(), 0
        self._thread = threading.Thread(target=self._run, name="integrity", daemon=True)

    def start(self) -> None:
        """Begin to watch: the weights, unless `every` is 0, and whether rotation keeps up."""
        self._thread.start()

    def stop(self) -> None:
        """Stop checking."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> bool:
        """Check all weights that answer, once; heal what changed. True: they were sound."""
        sound = True
        for snapshot in self._live.snapshots:
            changed = snapshot.check() if snapshot.check else []
            self._metrics.checks.labels("changed" if changed else "sound").inc()
            if changed:
                sound = False
                self._heal(snapshot, changed)
        return sound

    def _heal(self, snapshot: Snapshot, changed: list[str]) -> None:
        number = snapshot.number
        what = f"generation {number} changed in memory: {', '.join(changed[:5])}"
        outcome = replace(self._live, self._loader, number)
        self._rotation.alarm("integrity", f"{what}; {outcome}")

    def _run(self) -> None:
        due = time.monotonic() + self._wait()
        while not self._ending.wait(min(_LOOK, self._wait())):
            try:
                if self._every and time.monotonic() >= due:
                    due = time.monotonic() + self._wait()
                    self.check()
                self._rotation.watch()
                self._watch_expiry()
                self._let_go()
                for watch in self._also:
                    watch()
            except Exception as error:  # a watch that ends in silence is worse than none
                why = error if isinstance(error, G2DError) else type(error).__name__
                text = f"the watch failed ({why}) and goes on"
                self._rotation.alarm("integrity", text, rotate=False)

    def _wait(self) -> float:
        """Seconds between checks: never so few that hashing costs over 1 % of a core."""
        return max(self._every, sum(snapshot.interval for snapshot in self._live.snapshots))

    def _let_go(self) -> None:
        """Have what answers beside the newest end in time, with an alarm."""
        if ended := self._live.tend(self._now()):
            which = ", ".join(map(str, ended))
            text = f"generation {which} has expired: it answers no more, nor does what is older"
            self._rotation.alarm("expired", text, rotate=False)
        self._live.remember()

    def _watch_expiry(self) -> None:
        snapshot = self._live.snapshot
        if self._now() >= snapshot.expires and snapshot.number != self._expired:
            self._expired = snapshot.number
            text = f"generation {snapshot.number} has expired while it is live"
            self._rotation.alarm("expired", text)
