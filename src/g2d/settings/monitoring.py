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
    query_variants: int = within(
        2, 256, 8, "queries: variants of one input that may come in any order", since="0.2"
    )
    query_near: float = within(
        0.01, 1.0, 0.4, "queries: how far near inputs differ in any value, by its range",
        since="0.2",
    )  # fmt: skip
    query_window: int = within(
        16, 4096, 256, "queries: a client's last inputs that are compared with", since="0.2"
    )
    query_clients: int = within(
        1, 100_000, 512, "queries: clients whose last inputs are kept", since="0.2"
    )
    query_budget: int = within(
        0, 10**9, 0, "queries: near-duplicates of a client an hour, then a notice; 0: any",
        since="0.2",
    )  # fmt: skip
    query_alarms: float = within(
        1e-12, 0.01, 1e-6, "queries: alarms an input without cause, at most in the mean",
        since="0.2",
    )  # fmt: skip
    query_exempt: tuple[str, ...] = free(
        (), "queries: clients that are not judged, as the log names them", since="0.2"
    )
    drift_alarms: float = within(
        1e-12, 0.01, 2e-7, "drift: alarms a request without cause, at most", since="0.2"
    )
    drift_least: int = within(
        100, 10**6, 500, "drift: requests that say what is usual, before any alarm", since="0.2"
    )
    feedback: bool = free(False, "take labels that come late (POST /feedback)", since="0.2")
    feedback_rows: int = within(
        1, 10**6, 10_000, "labelled inputs that are kept; 256 MiB at most", since="0.2"
    )
    feedback_days: float = within(0.01, 3650.0, 30.0, "days for which they are kept", since="0.2")
    accuracy_drop: float = within(
        0.0, 1.0, 0.02, "feedback: accuracy that may be lost against the gate split", since="0.2"
    )
    accuracy_alarms: float = within(
        1e-9, 0.1, 1e-3, "feedback: chance of an alarm without cause, ever", since="0.2"
    )
