"""The monitors that come with G2D: what each is given, and what it tells; `listed` lists them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from g2d.core.types import Array
from g2d.service.http.protocol import Model
from g2d.service.monitors.alarms import RaiseAlarm
from g2d.settings import MonitorSettings


@dataclass(frozen=True)
class Watched:
    """What a built-in monitor is made from.

    Attributes:
        now: monotonic seconds; nothing that a set clock can move.
    """

    model: Model
    settings: MonitorSettings
    alarm: RaiseAlarm
    now: Callable[[], float] = time.monotonic


class BuiltIn:
    """An `Observer` that also hears of swaps, and tells numbers.

    `observe` and `swapped` are called from the observers' own thread; `status` from any.

    Attributes:
        name: by which `[monitors] watch` turns it on.
    """

    name: ClassVar[str]

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def observe(self, inputs: Array, logits: Array, client: str) -> None:
        """Look at one request that was answered: see `Observer`."""
        raise NotImplementedError

    def swapped(self, number: int) -> None:
        """Another generation answers from now on: what was usual of the last one is no more."""

    def status(self) -> Mapping[str, Any]:
        """Return numbers for the page and for Prometheus, by a few fixed names; never a client."""
        return {}
