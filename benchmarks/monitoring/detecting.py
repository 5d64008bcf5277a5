"""Is an attack seen before it wins? Searches in front of our monitor of queries, and of Blacklight.

Monitors are the product's own, shown every query as the service would show it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.monitoring.blacklight import Blacklight
from benchmarks.monitoring.names import ATTACKS
from g2d.attacks.query import Api, clock_square, hop_skip_jump
from g2d.core.seeds import seed_of
from g2d.core.types import Array, Logits
from g2d.redteam.context import AttackContext
from g2d.redteam.policies.detection import (
    Alarms,
    Detection,
    Jitter,
    Oracle,
    Rejection,
    Shown,
    Watch,
    warm,
)
from g2d.redteam.query_log import QueryLog, by_count
from g2d.service.http.protocol import Model
from g2d.service.monitors.builtin import Watched
from g2d.service.monitors.queries.evidence import NOTHING
from g2d.service.monitors.queries.fingerprints import Fingerprints, Prints
from g2d.service.monitors.queries.monitor import Queries
from g2d.service.monitors.queries.trails import Trail
from g2d.service.monitors.queries.windows import Window
from g2d.settings import MonitorSettings
from g2d.tasks.inference import predict

HONEST = 500  # queries of others that a monitor sees first
_ACCOUNTS = 20


class Copy:
    """An attacker's copy of our monitor's eyes: its own salt, all else the same."""

    def __init__(self, model: Model, first: Array, settings: MonitorSettings, seed: int) -> None:
        self._prints = Fingerprints(model, first, settings.near, _salt(seed))
        self._windows: dict[str, Window] = {}
        self._most = settings.window
        self._last: tuple[Array | None, Prints | None] = (None, None)

    def near(self, x: Array, client: str) -> bool:
        """Whether the monitor would call an input near one of the client's last ones."""
        return self._window(client).find(self._taken(x), 0, self._prints)[0] is not None

    def sent(self, x: Array, client: str) -> None:
        """Remember an input."""
        self._window(client).add(self._taken(x), 0, Trail(1, 0, 1, NOTHING))

    def _taken(self, x: Array) -> Prints:
        """An input's fingerprints; what is sent was looked at just before."""
        same, prints = self._last
        if same is not x or prints is None:
            prints = self._prints(x[None])
            self._last = (x, prints)
        return prints

    def _window(self, client: str) -> Window:
        return self._windows.setdefault(client, Window(self._most))


class Detecting:
    """One network behind one service, and who watches it."""

    def __init__(self, context: AttackContext, images: int, budget: int) -> None:
        self.context, self.budget = context, budget
        network = context.chain("generated").networks[-1]
        self.model: Logits = context.model(network)
        split = context.examples(images)
        right = (predict(self.model, split.x).argmax(1) == split.y).nonzero()[:, 0]
        self.split = split.take(right)
        honest = context.task.splits.gate
        self.honest = honest.x[:HONEST]
        shape, dtype = tuple(split.x.shape[1:]), str(split.x.numpy().dtype)
        self.served = Model("g2d", shape, dtype, context.task.classes)

    def rows(self) -> Mapping[str, Callable[[], dict[str, Any]]]:
        """Every row by name."""
        found = {}
        for detector in ("ours", "Blacklight"):
            for attack in ATTACKS:
                found[f"detected, {detector}, {attack}"] = lambda d=detector, a=attack: (
                    self.measure(d, a)
                )
        return found

    def watch(self, detector: str, alarms: Alarms, seed: int) -> Watch:
        """A monitor."""
        if detector == "Blacklight":
            return Blacklight(alarms, self._range(), seed)
        watched = Watched(self.served, MonitorSettings(), alarms, alarms.now)
        return Queries(watched, _salt(seed))

    def copy(self, detector: str, seed: int) -> Oracle:
        """The attacker's own."""
        if detector == "Blacklight":
            return Blacklight(Alarms(), self._range(), seed)
        return Copy(self.served, self.honest.numpy()[:256], MonitorSettings(), seed)

    def measure(self, detector: str, attack: str) -> dict[str, Any]:
        """Let an attack search in front of a monitor."""
        seed = self.context.seed("detected", attack)
        alarms = Alarms()
        watch = self.watch(detector, alarms, seed)
        false = warm(watch, lambda x: predict(self.model, x), self.honest, alarms)
        answer = by_count([self.model], None)
        accounts = _ACCOUNTS if attack == "accounts" else 1
        shown = Shown(answer, len(self.split), watch, alarms, accounts)
        log = QueryLog(
            shown, self.split, eps=self.context.eps, budget=self.budget,
            bounds=self.context.bounds,
        )  # fmt: skip
        shown.follow(log)
        told = self._search(attack, log, shown, detector, seed)
        found = Detection.of(shown.seen, log.first)
        return asdict(found) | told | {
            "n": len(self.split), "budget": self.budget, "honest": len(self.honest),
            "false_alarms": false, "seen": shown.seen.tolist(), "first": log.first.tolist(),
        }  # fmt: skip

    def _search(
        self, attack: str, log: QueryLog, shown: Shown, detector: str, seed: int
    ) -> dict[str, Any]:
        context, x, y = self.context, self.split.x, self.split.y
        if attack == "hop-skip-jump":
            hop_skip_jump(log, x, y, seed=seed, bounds=self._range(), classes=context.task.classes)
            return {}
        api, told = self._evading(attack, log, shown, detector, seed)
        clock_square(
            api, x, y, eps=context.eps, budget=self.budget, bounds=context.bounds,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return told()

    def _evading(
        self, attack: str, log: QueryLog, shown: Shown, detector: str, seed: int
    ) -> tuple[Api, Callable[[], dict[str, Any]]]:
        """How what the search proposes is sent."""
        known = {"eps": self.context.eps, "bounds": self.context.bounds}
        source = torch.Generator().manual_seed(seed_of(seed, "noise"))
        name, _, strength = attack.partition(" ")
        if name == "jitter":
            jitter = Jitter(
                log, self.split.x, strength=float(strength), generator=source, **known
            )  # fmt: skip
            return jitter, dict
        if name == "oars":
            jitter = Jitter(log, self.split.x, strength=0.0, generator=source, **known)
            copy = self.copy(detector, seed_of(seed, "copy") % 2**31)
            evading = Rejection(
                jitter, log, copy, len(self.split), seen=lambda lane: bool(shown.seen[lane])
            )
            return evading, lambda: {"sent_all_the_same": evading.refused / max(1, evading.sent)}
        return log, dict

    def _range(self) -> tuple[float, float]:
        bounds = self.context.bounds
        assert isinstance(bounds, tuple), "images have a range"
        return bounds


def _salt(seed: int) -> bytes:
    return seed.to_bytes(32, "big")
