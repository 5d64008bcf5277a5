"""The product's monitor of queries as the guard of a simulated service (`redteam.policies`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from g2d.core.seeds import seed_of
from g2d.core.types import Array, Logits
from g2d.redteam.context import AttackContext
from g2d.service.http.protocol import Model
from g2d.service.monitors.builtin import Watched
from g2d.service.monitors.queries.monitor import Queries
from g2d.settings import MonitorSettings
from g2d.tasks.inference import predict

HONEST, CLIENTS = 2000, 50  # queries of honest clients that a monitor sees first


class Alarms:
    """What a monitor is given in place of a service's alarm and clock.

    Attributes:
        raised: the client of each alarm, "" where it names nobody, and whether it asks for a
            rotation. seconds: what the clock says.
    """

    def __init__(self) -> None:
        self.raised: list[tuple[str, bool]] = []
        self.seconds = 0.0

    def __call__(self, kind: str, text: str, rotate: bool = True, **about: Any) -> None:
        """Note an alarm."""
        self.raised.append((str(about.get("client", "")), rotate))

    def now(self) -> float:
        """Seconds of a clock that is never set."""
        return self.seconds


class QueriesGuard:
    """One lane's monitor; attackers come after its honest clients."""

    def __init__(self, monitor: Queries, alarms: Alarms) -> None:
        self._monitor, self._alarms, self._began = monitor, alarms, alarms.seconds

    def look(self, x: Array, scores: Array, client: str, seconds: float) -> Mapping[str, bool]:
        """See `g2d.redteam.policies.guarding.Guard`."""
        before = len(self._alarms.raised)
        self._alarms.seconds = self._began + seconds
        self._monitor.observe(x, scores, client)
        found: dict[str, bool] = {}
        for name, rotates in self._alarms.raised[before:]:
            if name:  # else nobody is pinned
                found[name] = found.get(name, False) or rotates
        return found

    def swapped(self) -> None:
        """See `g2d.redteam.policies.guarding.Guard`."""
        self._monitor.swapped(0)


def guards_of(context: AttackContext, model: Logits, count: int) -> Sequence[QueriesGuard]:
    """One guard a lane: copies of a monitor that has seen honest queries answered by a model."""
    x, alarms = context.task.splits.gate.x[:HONEST], Alarms()
    served = Model("g2d", tuple(x.shape[1:]), str(x.numpy().dtype), context.task.classes)
    salt = seed_of(context.spec.seed, "monitor").to_bytes(32, "big")
    monitor = Queries(Watched(served, MonitorSettings(), alarms, alarms.now), salt)
    inputs, scores = x.numpy(), predict(model, x).numpy()
    for place in range(len(x)):
        alarms.seconds += 1.0
        one = slice(place, place + 1)
        monitor.observe(inputs[one], scores[one], f"honest {place % CLIENTS}")
    made = [copy.deepcopy((monitor, alarms)) for _ in range(count)]
    return [QueriesGuard(*pair) for pair in made]
