"""Which client has which records, and who answers when: of simulations, from their seed alone.

Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2d.core.seeds import seed_of
from g2d.core.types import Array

LATEST = 3
"""Rounds that a straggler's answer may take, at most."""


def shares(labels: Array, clients: int, alpha: float, seed: int) -> list[Array]:
    """Indices of each client's records, disjoint and sorted; some clients may have none.

    Args:
        labels: (n,) of all records. alpha: of the Dirichlet distribution that says how each class
            is spread over clients (Hsu et al. 2019, arXiv 1909.06335); 0: evenly, at random.
    """
    source = np.random.default_rng(seed_of(seed, "records"))
    if not alpha:
        return [np.sort(part) for part in np.array_split(source.permutation(len(labels)), clients)]
    parts: list[list[Array]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        own = source.permutation(np.flatnonzero(labels == label))
        # Gamma draws of a small alpha vanish all alike: then one client has the class.
        weights = source.gamma(alpha, size=clients)
        if not weights.sum():
            weights[int(source.integers(clients))] = 1.0
        cuts = np.round(np.cumsum(weights / weights.sum())[:-1] * len(own)).astype(int)
        for client, part in enumerate(np.split(own, cuts)):
            parts[client].append(part)
    return [np.sort(np.concatenate(part)) for part in parts]


@dataclass(frozen=True)
class Turn:
    """What a client does in a round: whether it trains, and of which round an answer comes."""

    trains: bool = False
    arrives: int | None = None


def timetable(
    rounds: int, dropout: float, stragglers: float, seed: int, stage: str, identity: str
) -> list[Turn]:
    """What one client does in each round of a stage.

    A share `dropout` of its turns is lost; a share `stragglers` is answered one to three rounds
    later, and until then it does nothing else.
    """
    source = np.random.default_rng(seed_of(seed, "turns", stage, identity))
    turns: list[Turn] = []
    due: tuple[int, int] | None = None  # when an answer arrives, and of which round
    for number in range(rounds):
        fate, delay = source.random(), int(source.integers(1, LATEST + 1))
        if due is not None:
            turns.append(Turn(arrives=due[1]) if due[0] == number else Turn())
            due = None if due[0] == number else due
        elif fate < dropout:
            turns.append(Turn())
        elif fate < dropout + stragglers:
            turns.append(Turn(trains=True))
            due = number + delay, number
        else:
            turns.append(Turn(trains=True, arrives=number))
    return turns
