"""Basins that are grown while a service rotates, so that some are in stock that nobody has seen.

A process of its own, at the lowest priority and with one thread, grows one basin after another; the
worker takes each up before it makes its next generation. The service reads the vault and counts.
That process is in `grower`, how a basin is grown in `defence.growing`. Knows no torch.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from g2d.core.sources import Digests
from g2d.errors import DAMAGE, G2DError, SettingsError
from g2d.rotation.events import Alarm, Tell
from g2d.rotation.scheduler import Rotation
from g2d.rotation.triggers import Backoff
from g2d.service.grower import GrowingProcess
from g2d.settings import Settings
from g2d.settings.growing import GrowthSettings
from g2d.vault.basins import BASIN, GROWING, Stock, stock_of
from g2d.vault.vault import Vault

GROWTH = "growth"
"""Kind of alarms about basins; with evidence, so that no client hears of the stock."""

LOOK = 5.0
"""Seconds between looks at the stock."""

_AGAIN = Backoff(first=30.0, most=3600.0)
_MOST_SAID = 400  # characters of a grower's last words


def growth_of(settings: Settings) -> GrowthSettings:
    """What a vault's settings say of growing beside a service.

    Raises:
        SettingsError: basins are to be kept in stock, and none could be grown or used.
    """
    growth, why = settings.growth, ""
    if not growth.unseen:
        return growth
    if settings.privacy.enabled:
        why = "the vault is private, and what is trained later is not paid for: leave it at 0"
    elif not settings.guidance.resting:
        why = "[guidance] resting = false begins anywhere: set it to true, and they are used first"
    elif settings.generator.space == "diffusion":
        why = "a diffusion model cannot begin in a basin it is told: [generator] space = 'soup' can"
    elif settings.population.recipe == "seeds" or settings.population.early_steps == 0:
        why = "[population] recipe = 'seeds', or early_steps = 0, has no basins to add to"
    elif growth.members == 1:
        why = "[growth] members = 1 has one start for all its generations: 2 or more, or 0"
    if why:
        raise SettingsError(
            f"[growth] unseen = {growth.unseen} keeps basins in stock that nobody has seen, and"
            f" none can be: {why}"
        )
    return growth


class Growing(Protocol):
    """One basin that is being grown elsewhere."""

    def start(self) -> None:
        """Begin."""
        ...

    def said(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends."""
        ...

    def end(self) -> None:
        """End it now; what it has trained stays."""
        ...


class Grower:
    """Keeps basins in stock that nobody has seen, from a thread of its own.

    Args:
        vault: its folder. wanted: how many are to be in stock. tell: hears of what cannot be grown,
            and once when rotations outrun growth. data, task, code: see `worker.Worker`. made:
            makes what grows one basin.
    """

    def __init__(
        self,
        vault: Path,
        wanted: int,
        tell: Tell,
        data: str = "",
        task: str = "",
        code: Digests = MappingProxyType({}),
        made: Callable[[list[str]], Growing] | None = None,
    ) -> None:
        self._path, self._wanted, self._tell = vault, wanted, tell
        self._arguments = [str(vault), data, task, json.dumps(dict(code))]
        self._made: Callable[[list[str]], Growing] = made or GrowingProcess
        self._stopping, self._mutex = threading.Event(), threading.Lock()
        self._looking = threading.Thread(target=self._run, name="growth", daemon=True)
        self._child: Growing | None = None
        self._hearing: threading.Thread | None = None
        self._stock = Stock((), frozenset(), {})
        self._counted_at: tuple[object, ...] = ()
        self._begun_for: tuple[object, ...] = ()  # the source and generator it was begun beside
        self._pace = _Pace()
        self._waiting: int | None = None  # a basin that is ready, and is not taken up yet
        self._failed, self._failures, self._at = "", 0, 0.0
        self._unread = ""  # why the vault could not be read when it was looked at last
        self._seen: set[int | None] | None = None  # the basins that were exposed, once counted
        self._last, self._outrun = 0, False

    def start(self) -> None:
        """Begin to look."""
        self._looking.start()

    def stop(self) -> None:
        """End for good, and what is being grown with it; it goes on where it stopped."""
        self._stopping.set()
        if self._looking.is_alive():
            self._looking.join()  # it begins nothing any more
        with self._mutex:
            child = self._child
        if child is not None:
            child.end()
        if self._hearing is not None:
            self._hearing.join()

    def status(self) -> dict[str, Any]:
        """How many basins are in stock, and what comes next; `due` in seconds, None: not known."""
        with self._mutex:
            growing = self._child is not None
            return {
                "wanted": self._wanted,
                "unseen": len(self._stock.unseen),
                "growing": growing,
                "done": self._pace.done,
                "total": self._pace.total,
                "due": self._pace.due() if growing else None,
                "failed": self._failed or self._unread or None,
            }

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
                self._unread = ""
            except G2DError as error:  # perhaps it can be read the next time; no basin has failed
                if str(error) != self._unread:
                    self._unread = str(error)
                    text = f"the stock of basins is not counted: {error}"
                    self._tell(Alarm(GROWTH, text, evidence={}))
            self._stopping.wait(LOOK)

    def look(self) -> None:
        """Count, and begin a basin where there are fewer than are wanted."""
        with Vault.open(self._path) as vault:
            stock = self._counted(vault)
            self._follow(vault, stock)
        if self._waiting is not None and (
            self._waiting in stock.basins
            or not (self._path / GROWING).exists()
            or self._begun_for != self._counted_at[1:]  # after a refresh nobody takes it up
        ):
            self._waiting = None
        with self._mutex:
            busy = self._child is not None or self._waiting is not None
        late = time.monotonic() >= self._at
        if not busy and late and len(stock.unseen) < self._wanted and not self._stopping.is_set():
            self._begin()

    def _counted(self, vault: Vault) -> Stock:
        """The stock; counted anew only where it may have changed, for a long life is long to read.

        Every basin that is taken up, and every refresh, brings a generator of its own.
        """
        generator = vault.entry("generator")
        now = vault.live(), vault.source, generator and generator.files.get("weights")
        if now != self._counted_at:
            self._stock, self._counted_at = stock_of(vault), now
        return self._stock

    def _follow(self, vault: Vault, stock: Stock) -> None:
        """Look in which basins those generations began that went live since the last look."""
        if self._seen is None:
            self._seen, self._last = {*stock.exposed}, vault.live() or 0
        for number in [n for n in vault.exposures() if n > self._last]:
            basin = vault.generation(number).manifest.get(BASIN)
            basin = basin if type(basin) is int else None
            stale, self._last = basin is None or basin in self._seen, number
            self._seen.add(basin)
            if not stale:
                self._outrun = False
            elif not stock.unseen:
                self._tell_outrun(number, basin)

    def _begin(self) -> None:
        child = self._made(self._arguments)
        with self._mutex:
            self._child, self._pace, self._begun_for = child, _Pace(), self._counted_at[1:]
        self._hearing = threading.Thread(target=self._hear, args=(child,), daemon=True)
        self._hearing.start()

    def _hear(self, child: Growing) -> None:
        """Listen to one that grows until it ends; what it has not said then, it has not done."""
        grown, failed = None, "the process that grows a basin ended; what it trained is kept"
        try:
            child.start()
            for said in child.said():
                if "grown" in said:
                    grown = int(said["grown"])
                elif "failed" in said:
                    failed = str(said["failed"])[:_MOST_SAID]
                elif "done" in said:
                    with self._mutex:
                        self._pace.tick(int(said["done"]), int(said["total"]))
        except (OSError, *DAMAGE) as error:
            failed = f"what grows a basin cannot be heard ({type(error).__name__}: {error})"
        child.end()
        with self._mutex:
            self._child = None
            self._waiting = grown
            if grown is not None:
                self._failed, self._failures = "", 0
        if grown is None and not self._stopping.is_set():
            self._fail(failed)

    def _fail(self, text: str) -> None:
        """Say why there is no basin, once for each reason, and wait longer each time."""
        with self._mutex:
            known, self._failed = self._failed, text
            self._failures += 1
            self._at = time.monotonic() + _AGAIN.seconds(self._failures, random.SystemRandom())
        if text != known:
            self._tell(Alarm(GROWTH, f"no basin is grown: {text}", evidence={}))

    def _tell_outrun(self, number: int, basin: int | None) -> None:
        """Say once what is served while nothing is in stock, and what that is worth."""
        if self._outrun:
            return
        self._outrun = True
        of = "a basin" if basin is None else f"basin {basin}"
        with self._mutex:
            taken = self._pace.whole()
        pace = "" if taken is None else f" One basin takes about {taken / 3600:.1f} h here:"
        self._tell(
            Alarm(
                GROWTH,
                f"rotations outrun growth: generation {number} is of {of} that was exposed before,"
                " and so are the next ones until a basin is grown. Against who sorts what was"
                " exposed by basin they are worth next to nothing (docs/benchmarks/basins.md)."
                f"{pace} rotate less often, or grow smaller basins ([growth] members)",
                evidence={"unseen": 0},
            )
        )


class GrowingRotation(Rotation):
    """A rotation beside which basins are grown."""

    def __init__(self, *arguments: Any, grower: Grower, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._grower = grower

    def start(self) -> None:
        """Begin both."""
        super().start()
        self._grower.start()

    def stop(self) -> None:
        """Stop both for good."""
        self._grower.stop()
        super().stop()

    def status(self) -> dict[str, Any]:
        """What every rotation says, and the stock of basins."""
        return super().status() | {GROWTH: self._grower.status()}


class _Pace:
    """How far a basin is, and by the trainings of this run when it will be done."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.done = self.total = 0
        self._now = now
        self._began = self._at = now()
        self._first: int | None = None

    def tick(self, done: int, total: int) -> None:
        """Take in what was done; the first one says where this run begins."""
        if self._first is None:
            self._first, self._began = done, self._now()
        self.done, self.total, self._at = done, total, self._now()

    def _each(self) -> float | None:
        if self._first is None or self.done <= self._first:
            return None
        return (self._at - self._began) / (self.done - self._first)

    def due(self) -> float | None:
        """Seconds until all is done, by the mean of those of this run; None: none is done yet."""
        each = self._each()
        left = (self.total - self.done) * (each or 0.0)
        return None if each is None else max(0.0, left - (self._now() - self._at))

    def whole(self) -> float | None:
        """Seconds that all trainings of a basin take; None: not known."""
        each = self._each()
        return None if each is None else each * self.total
