"""A window whose suspects are kept, in a state folder and at a time of a test's own."""

from __future__ import annotations

from pathlib import Path

from g2d.rotation.policy import policy_of
from g2d.rotation.window import Window
from g2d.service.suspects import Suspects
from g2d.settings import ServeSettings
from stand_ins import numbered

STICKY = ServeSettings(policy="sticky", live=3, period=0.0, hold=100.0)
CLIENTS = [f"10.0.0.{k}" for k in range(40)]


def files(place: Path) -> list[Path]:
    return sorted((place.parent / "state").rglob("*.suspects"))


class Wall:
    """Seconds since 1970 that a test moves."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


class Served:
    """A window whose suspects are kept, as a start of the service makes it."""

    def __init__(self, place: Path, wall: Wall, numbers=(1, 2, 3), settings=STICKY) -> None:
        self.suspects = Suspects(place, wall)
        policy = policy_of(settings, bytes(32), wall)
        policy.restore(self.suspects.pins)
        held = [numbered(n) for n in policy.held(range(1, numbers[0]), settings.live)]
        self.window = Window(
            [numbered(n) for n in numbers], policy, settings.live, held=held,
            left=self.suspects.kept.left, keeper=self.suspects,
        )  # fmt: skip
        self.suspects.watch(window=self.window)

    def seen(self) -> dict[str, int]:
        return {client: self.window.choose(client, b"")[0].number for client in CLIENTS}

    def pinned(self) -> list[str]:
        return [pin["client"] for pin in self.window.pins()]
