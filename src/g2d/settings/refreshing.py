"""Settings of `g2d refresh`: what a renewal may cost, and what is refused as poisoned."""

from __future__ import annotations

from dataclasses import dataclass

from g2d.settings.fields import Checked, within


@dataclass(frozen=True)
class RefreshSettings(Checked):
    """What a refresh may cost, and which new data it refuses (docs/monitoring.md)."""

    effort: float = within(
        0.001, 10.0, 0.1, "optimiser steps of all forks, as a share of the population's",
        since="0.2",
    )  # fmt: skip
    rate: float = within(
        0.01, 100.0, 4.0, "peak learning rate of forks, by [population] fork_rate; not of private",
        since="0.2",
    )  # fmt: skip
    # Fitted as long as at first it took as much as all forks together, and won nothing by it.
    fit: float = within(
        0.01, 10.0, 0.1, "steps of the generator's two fits, as a share of its first ones'",
        since="0.2",
    )  # fmt: skip
    polish: int = within(
        1, 64, 4, "where accuracy alone fails: up to so often polish_steps, and less mu; 1: not",
        since="0.2",
    )  # fmt: skip
    pool: int = within(1, 10**7, 500, "attacks crafted on each fork, at most", since="0.2")
    former_drop: float = within(
        0.0, 1.0, 0.02, "accuracy on the former gate data that may be lost", since="0.2"
    )
    class_drop: float = within(
        0.0, 1.0, 0.05, "accuracy on them that any one class may be shown to have lost",
        since="0.2",
    )  # fmt: skip
    agreement: float = within(
        0.0,
        1.0,
        0.1,
        "least agreement of labels with the live networks, beyond chance",
        since="0.2",
    )
    label_noise: float = within(
        0.0, 1.0, 0.05, "largest share of labels that are estimated to be wrong", since="0.2"
    )
    spectral: float = within(
        0.0,
        1.0,
        0.25,
        "records that stand apart in a class: how much more often the live networks"
        " name them otherwise",
        since="0.2",
    )
    backdoor: float = within(
        0.0, 1e6, 3.5, "largest anomaly index of a class's smallest trigger; 0: not searched",
        since="0.2",
    )  # fmt: skip
    backdoor_steps: int = within(1, 100_000, 8, "steps of that search in each mask", since="0.2")
