"""Settings of a population that clients train together; docs/federated.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from g2d.settings.fields import Checked, free, stored, within

_CHANGES = ("member_drop", "patience")


@dataclass(frozen=True)
class FederatedSettings(Checked):
    """How clients train a population without giving their records away."""

    clients: int = within(1, 10_000, 20, "clients that may answer a round", since="0.2")
    f: int = within(0, 10_000, 0, "how many of them may be malicious", since="0.2")
    rule: str = free(
        "centred-clipping",
        "mean, median, trimmed-mean, geometric-median, multi-krum, centred-clipping, bulyan,"
        " fltrust, your 'module:name'",
        since="0.2",
    )
    mix: bool = free(True, "mix each update with its nearest neighbours before", since="0.2")
    clip: float = within(
        0.0, 1e6, 2.0, "norms above so many median norms are scaled down; 0: none", since="0.2"
    )
    balance: bool = free(
        True, "clients' loss leaves out what their own label frequencies explain; not of private"
        " ones", since="0.2",
    )  # fmt: skip
    root: int = within(0, 10**7, 200, "records of the server's own for checks", since="0.2")
    rounds: int = within(1, 10**6, 100, "rounds of the base", since="0.2")
    early_rounds: int = within(
        0, 10**6, 80, "rounds of a basin's early checkpoint; attacks are learned in the last half",
        since="0.2",
    )  # fmt: skip
    fork_rounds: int = within(1, 10**6, 30, "rounds of a member", since="0.2")
    local_steps: int = within(1, 10**6, 10, "optimiser steps of a client in a round", since="0.2")
    local_rate: float = within(1e-8, 100.0, 0.2, "SGD's rate at first; it falls", since="0.2")
    fork_rate: float = within(
        1e-8, 100.0, 0.02, "the same, of members: attacks that they learn make steps long",
        since="0.2",
    )  # fmt: skip
    momentum: float = within(0.0, 0.9999, 0.9, "of a client's updates, round to round", since="0.2")
    deadline: int = within(0, 1000, 0, "rounds that an answer may be late", since="0.2")
    patience: float = within(
        0.0, 1e9, 600.0, "seconds that a round waits for clients who are missing", since="0.2"
    )
    member_drop: float = within(
        0.0, 1.0, 0.05, "gate accuracy that a member may lose against the base", since="0.2"
    )
    alpha: float = within(
        0.0, 1e9, 0.5, "simulation: Dirichlet split of the records; 0: evenly", since="0.2"
    )
    dropout: float = within(
        0.0, 1.0, 0.0, "simulation: share of answers that are lost", since="0.2"
    )
    stragglers: float = within(
        0.0, 1.0, 0.0, "simulation: share that comes one to three rounds later", since="0.2"
    )
    private: bool = free(
        False, "clients train by [privacy], record by record, each with a ledger of its own",
        since="0.2",
    )  # fmt: skip
    secure: bool = free(False, "secure aggregation; refused, the error says why", since="0.2")

    @property
    def agreed(self) -> dict[str, Any]:
        """What server and clients have to have alike; how private it is each decides for itself."""
        return {name: value for name, value in self.of_training.items() if name != "private"}

    @property
    def of_training(self) -> dict[str, Any]:
        """What networks depend on: how members are judged, and how long is waited, may change."""
        return {name: value for name, value in stored(self).items() if name not in _CHANGES}
