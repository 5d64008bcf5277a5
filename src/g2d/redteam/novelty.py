"""Novelty: are generated networks new, or population members over again?

A network is novel if it passes an accuracy bar that was set beforehand *and* its aligned distance
to the nearest population member exceeds tau times what members themselves keep from each other.
Beside that stands its disagreement with the nearest member: distance alone proves nothing. After
Zeng et al. (arXiv 2506.07998), who found that weight generators mostly replicate or interpolate.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from g2d.core.types import Logits, State
from g2d.errors import DataError
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.weights.symmetry import Coupling, align, balance, relative_l1

TAUS = (1, 2, 3)
MARGIN = 0.01  # the bar: an accuracy of the base less one point


class Distances:
    """Aligned relative L1 distances to the members of a population, symmetries removed once.

    The same numbers as `aligned_distances` gives, which balances every member at every call.

    Args:
        members: state dicts of one architecture. chain: its hidden layers; `()`: not aligned.
        most: `unit` is taken over at most so many members, evenly spaced (all, if None).
        names: the tensors that count; None: all numbers.
    """

    def __init__(
        self,
        members: Sequence[State],
        chain: Sequence[Coupling],
        most: int | None = None,
        names: Collection[str] | None = None,
    ) -> None:
        self.chain, self._names = chain, names
        self.members = [self._balanced(member) for member in members]
        self._asked = spaced(len(members), most)

    def _balanced(self, state: State) -> State:
        return balance(state, self.chain) if self.chain else state

    def _one(self, reference: State, balanced: State) -> float:
        return relative_l1(reference, align(reference, balanced, self.chain), self._names)

    def all(self, state: State, first: int | None = None) -> list[float]:
        """Distance to each member, in order; only to the `first` ones, if given."""
        balanced = self._balanced(state)
        return [self._one(member, balanced) for member in self.members[:first]]

    def nearest(self, state: State) -> tuple[float, int]:
        """Distance to the nearest member, and which it is."""
        found = self.all(state)
        least = min(found)
        return least, found.index(least)

    @cached_property
    def unit(self) -> float:
        """The members' median distance to their own nearest member: tau counts in these.

        Raises:
            DataError: there is one member only.
        """
        if len(self.members) < 2:
            raise DataError("one member has no nearest other; novelty needs at least two")
        return statistics.median(
            min(self._one(self.members[i], b) for j, b in enumerate(self.members) if j != i)
            for i in self._asked
        )


def spaced(count: int, most: int | None) -> list[int]:
    """Places of at most `most` of `count` things, evenly spaced, the first among them."""
    if most is None or count <= most:
        return list(range(count))
    return [place * count // most for place in range(most)]


def novel(distance: float, accuracy: float, bar: float, unit: float, tau: float) -> bool:
    """Whether a network is novel: accurate enough, and more than `tau` units from every member."""
    return accuracy >= bar and distance > tau * unit


@dataclass(frozen=True)
class Novelty:
    """How novel some networks are; means over them.

    Attributes:
        networks: how many. accuracy: their mean accuracy.
        passed: share that reaches the bar. novel: share that is novel, by tau.
        distance: aligned, to the nearest member.
        disagreement: share of examples that a network and its nearest member label differently.
    """

    networks: int
    accuracy: float
    passed: float
    distance: float
    disagreement: float
    novel: dict[str, float]


def measure(
    states: Sequence[State],
    models: Sequence[Logits],
    members: Sequence[Logits],
    distances: Distances,
    split: Split,
    bar: float,
) -> Novelty:
    """Measure how novel networks are.

    Args:
        states, models: the networks, parameters and function, in one order.
        members: models of `distances.members`, in the same order.
        split: what accuracy and disagreement are counted on. bar: least accuracy of a novel one.

    Raises:
        DataError: there is no network, or not a model for each.
    """
    if not states or len(states) != len(models) or len(members) != len(distances.members):
        raise DataError(
            f"{len(states)} states with {len(models)} models, {len(distances.members)} members "
            f"with {len(members)}: give at least one network, and a model for each"
        )
    near = [distances.nearest(state) for state in states]
    labels = [predict(model, split.x).argmax(1) for model in models]
    others = {place: predict(members[place], split.x).argmax(1) for _, place in near}
    accuracy = [_share(label == split.y) for label in labels]
    apart = [_share(a != others[place]) for a, (_, place) in zip(labels, near, strict=True)]
    found = list(zip([d for d, _ in near], accuracy, strict=True))
    return Novelty(
        networks=len(states),
        accuracy=statistics.mean(accuracy),
        passed=statistics.mean(float(a >= bar) for a in accuracy),
        distance=statistics.mean(d for d, _ in near),
        disagreement=statistics.mean(apart),
        novel={str(tau): share_novel(found, bar, distances.unit, tau) for tau in TAUS},
    )


def share_novel(found: Sequence[tuple[float, float]], bar: float, unit: float, tau: float) -> float:
    """Share of networks, given as (distance, accuracy), that are novel."""
    return statistics.mean(float(novel(d, a, bar, unit, tau)) for d, a in found)


def _share(mask: Tensor) -> float:
    return int(mask.sum()) / len(mask)
