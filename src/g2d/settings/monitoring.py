"""Settings of what watches the live service: `[monitors]`. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from g2d.settings.fields import Checked, free, within


@dataclass(frozen=True)
class MonitorSettings(Checked):
    """What is watched while it serves, and what its alarms may cause; docs/monitoring.md."""

    watch: tuple[str, ...] = free((), "built-in monitors that look on, by name", since="0.2")
    cooldown: float = within(
        0.0, 86_400.0, 600.0, "seconds that a client's alarms of a kind are one", since="0.2"
    )
    rotations: float = within(
        0.0, 3600.0, 1.0, "rotations an hour that alarms of queries may cause", since="0.2"
    )
