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
    variants: int = within(
        4, 256, 16, "queries: variants of one input that may come in any order", since="0.2"
    )
    near: float = within(
        0.01, 1.0, 0.4, "queries: how far near inputs differ in any value, by its range",
        since="0.2",
    )  # fmt: skip
    window: int = within(
        16,
        4096,
        256,
        "queries: a client's last inputs that new ones are compared with",
        since="0.2",
    )
    clients: int = within(
        1, 100_000, 1024, "queries: clients whose last inputs are kept", since="0.2"
    )
    near_duplicates: int = within(
        0, 10**9, 0, "queries: near-duplicates of a client an hour, then a notice; 0: any",
        since="0.2",
    )  # fmt: skip
    false_alarms: float = within(
        1e-12, 0.01, 1e-6, "queries: alarms an input without cause, at most in the mean",
        since="0.2",
    )  # fmt: skip
    exempt: tuple[str, ...] = free(
        (), "queries: clients that are not judged, as the log names them", since="0.2"
    )
