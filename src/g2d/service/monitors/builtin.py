"""The monitors that come with G2D: what each is given, what it tells, and the list of them.

A monitor is a class in a file of its own, a line in `BUILT_IN` and a name in `[monitors] watch`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from g2d.core.types import Array
from g2d.errors import SettingsError, nearest
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


BUILT_IN: tuple[type[BuiltIn], ...] = ()


def built_in(watched: Watched) -> dict[str, BuiltIn]:
    """Make the monitors that `[monitors] watch` names, "all" for every one.

    Raises:
        SettingsError: there is none of a name, or what it needs is not installed.
    """
    known = {kind.name: kind for kind in BUILT_IN}
    names = watched.settings.watch
    for name in names:
        if name not in known and name != "all":
            raise SettingsError(
                f"[monitors] watch: there is no monitor {name!r}, only {', '.join(known)} and all."
                + nearest(name, known)
            )
    wanted = known if "all" in names else dict.fromkeys(names)
    return {name: known[name](watched) for name in wanted}
