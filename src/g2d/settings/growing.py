"""Settings of `g2d grow`: how large a new basin is, and how many a service keeps in stock."""

from __future__ import annotations

from dataclasses import dataclass

from g2d.settings.fields import Checked, within


@dataclass(frozen=True)
class GrowthSettings(Checked):
    """New basins that are grown while a vault is in use (docs/method.md)."""

    members: int = within(
        0, 1000, 0, "members of a basin that is grown; 0: as many as the population's have",
        since="0.2",
    )  # fmt: skip
    unseen: int = within(
        0, 1000, 0, "basins that nobody has seen, which a service keeps in stock; 0: grows none",
        since="0.2",
    )  # fmt: skip
    keep: int = within(
        0, 1000, 0, "exposed basins that candidates may begin in, the newest; 0: all", since="0.2"
    )
