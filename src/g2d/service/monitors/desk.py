"""What operators see of monitors: their numbers, what was held back, who is pinned. No HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from g2d.service.monitors.alarms import AlarmLine
from g2d.service.monitors.builtin import BuiltIn
from g2d.service.monitors.feedback.judge import FeedbackJudge


@dataclass(eq=False)
class Desk:
    """The monitors that are on, and what is told of them to those who may hear of it.

    Attributes:
        feedback: judges labels that come late; None: none are taken. pinned: says which clients
            stay with the generation that answers them, as far as the policy knows it.
    """

    monitors: Mapping[str, BuiltIn] = field(default_factory=dict)
    line: AlarmLine = field(default_factory=AlarmLine)
    feedback: FeedbackJudge | None = None
    pinned: Callable[[], Any] = tuple

    def status(self) -> dict[str, Any]:
        """Return what the page shows beside the alarms."""
        return {
            "monitors": self.numbers(),
            "suppressed": self.line.suppressed,
            "pinned": self.pinned(),
        }

    def numbers(self) -> dict[str, dict[str, Any]]:
        """Return each monitor's numbers by its name."""
        told = {name: dict(one.status()) for name, one in self.monitors.items()}
        return told | ({"feedback": dict(self.feedback.status())} if self.feedback else {})

    def close(self) -> None:
        """Let go of what is held outside this process."""
        if self.feedback is not None:
            self.feedback.close()

    def register(self, registry: CollectorRegistry) -> None:
        """Have Prometheus ask for it, under names that `metrics.CLOSED` keeps from clients."""
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield each monitor's numbers, by its name and the number's; no label holds a client."""
        found = GaugeMetricFamily(
            "g2d_monitor", "What a monitor measures.", labels=["monitor", "value"]
        )
        for name, numbers in self.numbers().items():
            for key, value in numbers.items():
                if isinstance(value, int | float):
                    found.add_metric([name, key], float(value))
        yield found
        yield CounterMetricFamily(
            "g2d_alarms_suppressed", "Alarms of monitors that were held back for their cool-down.",
            value=self.line.suppressed,
        )  # fmt: skip
