"""The monitor of queries by itself, and the copy of its detector that an attacker holds.

What attacks it and which streams it is shown is no part of this: see `detection` and `streams`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2d.core.seeds import seed_of
from g2d.service.http.protocol import Model
from g2d.service.monitors.builtin import Watched
from g2d.service.monitors.queries.fingerprints import Fingerprints
from g2d.service.monitors.queries.monitor import Queries
from g2d.service.monitors.queries.trails import Trail
from g2d.service.monitors.queries.windows import Window, scratch
from g2d.settings import MonitorSettings
from g2d.tasks.task import Task


class Watch:
    """A monitor, and which clients it has raised alarms about."""

    def __init__(self, task: Task, seed: int) -> None:
        self.alarms: list[tuple[str, str, str]] = []
        shape = tuple(task.splits.test.x.shape[1:])
        model = Model("g2d", shape, "float32", task.classes)
        salt = seed_of(seed, "salt").to_bytes(32, "big")
        # No time passes, so that no evidence fades and no figure hangs on how fast this machine is.
        watched = Watched(model, MonitorSettings(), self._alarm, now=lambda: 0.0)
        self.monitor = Queries(watched, salt)

    def _alarm(self, kind: str, text: str, rotate: bool = True, **about: Any) -> None:
        self.alarms.append((kind, about.get("client", ""), about["evidence"]["rule"]))

    def see(self, x: np.ndarray, logits: np.ndarray, client: str) -> bool:
        """Show it a request; whether it raised an alarm about its client."""
        before = len(self.alarms)
        self.monitor.observe(x, logits, client)
        return any(client == who for _, who, _ in self.alarms[before:])


class Copy:
    """The attacker's copy of the detector of near-duplicates, with a salt of its own."""

    def __init__(self, task: Task, seed: int, first: Tensor) -> None:
        model = Model("g2d", tuple(first.shape[1:]), "float32", task.classes)
        salt = seed_of(seed, "attacker").to_bytes(32, "big")
        settings = MonitorSettings()
        self._by = Fingerprints(model, first.numpy(), settings.query_near, salt)
        self._most, self._met = settings.query_window, scratch()
        self._windows: dict[int, Window] = {}
        self._trail = Trail(1, np.zeros(2), 0, np.zeros(0))

    def _window(self, lane: int) -> Window:
        return self._windows.setdefault(lane, Window(self._most, self._met))

    def near(self, x: Tensor, lanes: Tensor) -> Tensor:
        """See `g2d.attacks.oars.Detector`."""
        prints = self._by(x.numpy())
        found = [
            self._window(lane).find(prints, i, self._by) for i, lane in enumerate(lanes.tolist())
        ]
        return torch.tensor([trail is not None for trail, *_ in found], dtype=torch.bool)

    def sent(self, x: Tensor, lanes: Tensor) -> None:
        """See `g2d.attacks.oars.Detector`."""
        prints = self._by(x.numpy())
        for i, lane in enumerate(lanes.tolist()):
            self._window(lane).add(prints, i, self._trail)
