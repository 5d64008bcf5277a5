"""What a service asks of a rotation, wherever that runs. No HTTP, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from g2d.rotation.events import Level


class RotationControl(Protocol):
    """Controls the rotation of what is served.

    `scheduler.Rotation` is one for this process; a replica of a cluster has one that asks its
    coordinator.
    """

    @property
    def live(self) -> int:
        """Number of the generation that answers here."""
        ...

    def start(self) -> None:
        """Begin to rotate."""
        ...

    def stop(self) -> None:
        """Stop for good; what is live goes on answering."""
        ...

    def request(self) -> Future[int]:
        """Ask for a rotation; the future holds the number then live, or raises a `G2DError`."""
        ...

    def alarm(
        self,
        kind: str,
        text: str,
        rotate: bool = True,
        *,
        level: Level = "warning",
        client: str = "",
        evidence: Mapping[str, float | str] | None = None,
    ) -> None:
        """Take an alarm from a monitor, and rotate away unless `rotate` is False.

        Args:
            client, evidence: see `events.Alarm`; "": it is about nobody's queries.
        """
        ...

    def count(self, inputs: int) -> None:
        """Count answered inputs; called by the threads that infer."""
        ...

    def pause(self, paused: bool = True) -> None:
        """Suspend rotation, or go on."""
        ...

    def status(self) -> dict[str, Any]:
        """Say what is live, for how long, and what comes next."""
        ...

    def watch(self) -> None:
        """Raise an alarm if a rotation is long overdue; called about twice a second."""
        ...
