"""Watches the live weights in memory, heals them from the vault, and watches rotation."""

from __future__ import annotations

import threading

from g2d.errors import G2DError
from g2d.rotation import Live, Snapshot
from g2d.schedule import Rotation
from g2d.service.metrics import Metrics
from g2d.service.shelf import VaultShelf


class Monitor:
    """Checks the live snapshot; one that has changed is replaced by a sound copy, with an alarm.

    Args:
        every: seconds between checks; longer for a model so large that hashing costs over 1 %.
    """

    def __init__(
        self, live: Live, shelf: VaultShelf, rotation: Rotation, metrics: Metrics, every: float
    ) -> None:
        self._live, self._shelf, self._rotation = live, shelf, rotation
        self._metrics, self._every = metrics, every
        self._ending = threading.Event()
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
        """Check the live weights once; heal them if they changed. True: they were sound."""
        snapshot = self._live.snapshot
        changed = snapshot.check() if snapshot.check else []
        self._metrics.checks.labels("changed" if changed else "sound").inc()
        if changed:
            self._heal(snapshot, changed)
        return not changed

    def _heal(self, snapshot: Snapshot, changed: list[str]) -> None:
        number = snapshot.number
        what = f"generation {number} changed in memory: {', '.join(changed[:5])}"
        try:
            # A fresh copy and one assignment: no answer mixes healed tensors with damaged ones.
            healed = self._live.heal(self._shelf.again(number))
            outcome = "healed from the vault" if healed else "it is not live any more"
        except G2DError as error:
            outcome = f"NOT healed: {error}"
        self._rotation.alarm("integrity", f"{what}; {outcome}")

    def _run(self) -> None:
        while not self._ending.wait(max(self._every, self._live.snapshot.interval)):
            if self._every:
                self.check()
            self._rotation.watch()
