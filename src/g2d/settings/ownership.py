"""Settings of what proves whose weights these are: the mark, fingerprints of replicas, canaries."""

from __future__ import annotations

from dataclasses import dataclass

from g2d.settings.fields import Checked, free, within


@dataclass(frozen=True)
class CanarySettings(Checked):
    """Inputs kept with a generation that show changed weights to whoever can only ask."""

    count: int = within(0, 1024, 16, "canaries kept with a generation; 0: none", since="0.2")
    steps: int = within(
        0, 10_000, 0, "gradient steps to where scores depend most on the weights, at first",
        since="0.2",
    )  # fmt: skip
    every: float = within(
        0.0, 86_400.0, 30.0, "seconds between checks of a service by its own; 0: never", since="0.2"
    )


@dataclass(frozen=True)
class WatermarkSettings(Checked):
    """The mark of ownership that networks carry, and what it is proven with."""

    key: str = free(
        "", "file of the watermark key; empty: no mark (`g2d watermark new` makes one)", since="0.2"
    )
    sets: int = within(
        2, 64, 2, "sets of triggers; the last is a reserve that is never queried", since="0.2"
    )
    triggers: int = within(8, 100, 96, "triggers of a set; a verification asks all", since="0.2")
    reserve: int = within(
        8, 100, 32, "triggers of the reserve that networks learn; at most a set's", since="0.2"
    )
    weight: float = within(0.0, 1e4, 0.3, "weight of the triggers in training", since="0.2")
    batch: int = within(1, 10**6, 64, "triggers a training step", since="0.2")
    hits: float = within(0.0, 1.0, 0.9, "gate: least share of hits in every set", since="0.2")
    timestamp: str = free(
        "", "address of an RFC 3161 server that dates the commitment", metavar="URL", since="0.2"
    )


@dataclass(frozen=True)
class ClusterSettings(Checked):
    """What replicas of a cluster serve."""

    fingerprint: bool = free(
        False, "mark each replica's copy of a generation, for `g2d trace`", since="0.2"
    )
    key: str = free("", "file of the secret key that marks are made from", since="0.2")
    mark_drop: float = within(
        0.0, 1.0, 0.002, "accuracy on the gate split that marks may cost", since="0.2"
    )
