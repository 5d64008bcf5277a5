"""How bit flips are judged: searched on the attacker's batch, counted on the test examples.

An average over networks varies with the networks too, so its interval is a percentile bootstrap
over networks and images, never narrower than the Wilson interval over images alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from g2d.attacks.bitflip import Flip, Quantised, flipped, progressive_bit_search, quantise
from g2d.core.types import State
from g2d.redteam.context import AttackContext, Case, Network
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import Rate, pooled, share
from g2d.tasks.inference import predict
from g2d.weights.layout import ties_of

METRIC = "accuracy lost"
RESAMPLES = 2000
# The network that flips were found on (None: on several jointly) and the one that is flipped.
Pair = tuple[Network | None, Network]


@dataclass(frozen=True)
class Curve:
    """What was right before any flip, and after each one: (n,) bool each."""

    before: Tensor
    after: tuple[Tensor, ...]

    def lost(self, flips: int) -> Rate:
        """Share of all examples that were right before and are wrong after the first `flips`."""
        wrong = self.wrong(flips)
        return share(int(wrong.sum()), len(wrong))

    def wrong(self, flips: int) -> Tensor:
        """Which examples were right before and are wrong after the first `flips`, (n,) bool."""
        return self.before & ~self.after[min(flips, len(self.after) - 1)]

    def accuracy(self, flips: int) -> float:
        """Accuracy after the first `flips`."""
        return float(self.after[min(flips, len(self.after) - 1)].double().mean())


class Bench:
    """Where flips are searched (a batch of the guide split) and judged (the test examples)."""

    def __init__(self, case: Case, context: AttackContext) -> None:
        self.case, self.context = case, context
        self.split = context.examples()
        self.model = context.task.model(0).eval()
        self.ties = ties_of(self.model)
        source = context.source("bit flips", "batch")
        self.batch = context.task.splits.guide.sample(case.number("batch"), source)
        # What a constant answer gets; at least 1 / classes.
        counts = torch.bincount(self.split.y, minlength=context.task.classes)
        self.chance = float(counts.max()) / len(self.split)

    def stored(self, network: Network) -> Quantised:
        """A network as it is stored."""
        return quantise(self.state(network))

    def state(self, network: Network) -> State:
        """A network's tensors, each once: what is tied lies in memory once, and is hit once."""
        return {n: t for n, t in self.context.state(network).items() if n not in self.ties}

    def search(self, *networks: Quantised) -> list[Flip]:
        """Flips that hurt these networks together."""
        return progressive_bit_search(
            self.model, networks, self.batch, most=self.case.number("most")
        )

    def right(self, state: State) -> Tensor:
        """Which test examples a state classifies correctly, (n,) bool."""
        logits = predict(
            lambda x: functional_call(self.model, dict(state), (x,), tie_weights=False),
            self.split.x,
        )
        return logits.argmax(1) == self.split.y

    def curve(self, stored: Quantised, flips: Sequence[Flip]) -> Curve:
        """Judge every prefix of a list of flips."""
        after = [self.right(flipped(stored, flips[:i]).state()) for i in range(len(flips) + 1)]
        return Curve(after[0], tuple(after))

    def ends(self, stored: Quantised, flips: Sequence[Flip]) -> Curve:
        """Judge before and after all flips alone."""
        before = self.right(stored.state())
        return Curve(before, (self.right(flipped(stored, flips).state()),))

    def sparse(self, stored: Quantised, flips: Sequence[Flip], enough: int) -> Curve:
        """Judge before any flip, after `enough` and after all of them."""
        parts = (flips[:0], flips[:enough], flips)
        after = tuple(self.right(flipped(stored, part).state()) for part in parts)
        return Curve(after[0], after)

    def average(self, curves: Sequence[Curve], at: Sequence[int]) -> float:
        """Mean loss over curves, each after its own number of flips."""
        return pooled([c.lost(flips) for c, flips in zip(curves, at, strict=True)]).value

    def count(self, stored: Quantised, flips: Sequence[Flip]) -> int:
        """How many of the flips bring a network to chance; all of them where they do not."""
        for many in range(len(flips)):
            if self.at_chance(self.right(flipped(stored, flips[:many]).state())):
                return many
        return len(flips)

    def at_chance(self, right: Tensor) -> bool:
        """Whether accuracy is within a point of what a constant answer gets."""
        return float(right.double().mean()) <= self.chance + 0.01

    def row(
        self, kind: str, threat: str, pairs: Sequence[Pair], curves: Sequence[Curve],
        at: Sequence[int], **more: object,
    ) -> Row:  # fmt: skip
        """A row of the mean loss over networks, each after its own number of flips.

        Args:
            pairs: for every curve, the network the flips were found on and the one flipped.
        """
        lost = [curve.lost(flips) for curve, flips in zip(curves, at, strict=True)]
        wrong = torch.stack([c.wrong(flips) for c, flips in zip(curves, at, strict=True)])
        clean = self.mean(threat, pairs, torch.stack([curve.before for curve in curves]))
        mean = self.mean(threat, pairs, wrong)
        most = self.case.number("most")
        extra = {"networks": _networks(pairs, lost)} | dict(more.pop("extra", {}))  # type: ignore[call-overload]
        known: dict[str, object] = {
            "eps": None,
            "metric": METRIC,
            "worst": max(lost, key=lambda rate: rate.value),
            "clean_accuracy": clean,
            "harm": min(1.0, max(0.0, mean.value / max(1e-9, clean.value - self.chance))),
            "scored": len(curves),
            "gradient_steps": most,
            "note": "; ".join(filter(None, (str(more.pop("note", "")), _interval_note(pairs)))),
            "extra": extra,
        }
        attack = str(more.pop("attack", f"progressive bit search, {most} flips at most"))
        kind = f"bit-flips-{kind}"
        return self.context.row(self.case, kind, threat, attack, mean, **(known | more))

    def mean(self, threat: str, pairs: Sequence[Pair], hits: Tensor) -> Rate:
        """Mean over curves, (c, n) bool, with an interval over networks and images."""
        rate = pooled([share(int(row.sum()), len(row)) for row in hits])
        if len(hits) == 1:
            return rate
        source = self.context.source("bit flips", "interval", self.case.chain, threat)
        low, high = bootstrap(hits.double(), _factors(pairs), source)
        return replace(rate, low=min(rate.low, low), high=max(rate.high, high))


def bootstrap(
    hits: Tensor, factors: Sequence[Sequence[str]], generator: torch.Generator
) -> tuple[float, float]:
    """Percentile interval (95 %) of a mean over curves and images, both resampled.

    Every factor (network that was read, network that was flipped, draw) is resampled on its own and
    the counts multiplied (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111); so are images.

    Args:
        hits: what happened, (curves, images), 0 or 1. factors: a level for each curve.
    """
    weights = torch.ones(RESAMPLES, len(hits), dtype=torch.double)
    for labels in factors:
        levels = {label: place for place, label in enumerate(dict.fromkeys(labels))}
        counts = _counts(len(levels), generator)
        weights *= counts[:, [levels[label] for label in labels]]
    images = _counts(hits.shape[1], generator)
    total = weights.sum(1)
    drawn = total > 0  # crossed factors may leave no pair of both
    sums = ((weights @ hits) * images).sum(1)[drawn]
    means = sums / (total[drawn] * hits.shape[1])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return max(0.0, low), min(1.0, high)


def _counts(levels: int, generator: torch.Generator) -> Tensor:
    """How often each level is drawn, with replacement; (RESAMPLES, levels)."""
    drawn = torch.randint(levels, (RESAMPLES, levels), generator=generator)
    zero = torch.zeros(RESAMPLES, levels, dtype=torch.double)
    return zero.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.double))


def _factors(pairs: Sequence[Pair]) -> list[list[str]]:
    """What is resampled: networks flipped, networks read, and draws where pairs repeat."""
    read = [network.digest if network else "" for network, _ in pairs]
    factors = [f for f in ([network.digest for _, network in pairs], read) if len(set(f)) > 1]
    if len(factors) == 2 and len(set(pairs)) == max(len(set(f)) for f in factors):
        factors = [max(factors, key=lambda f: len(set(f)))]  # each has its own other
    if len(set(pairs)) < len(pairs):
        factors.append([str(place) for place in range(len(pairs))])
    return factors


def _interval_note(pairs: Sequence[Pair]) -> str:
    """What the interval covers."""
    if len(pairs) == 1:
        return "one network: the interval is over images alone (Wilson)"
    networks = len({network.digest for _, network in pairs})
    parts = [f"{networks} networks"] if networks > 1 else []
    parts += [f"{len(pairs)} draws"] if len(set(pairs)) < len(pairs) else []
    parts = parts or [f"{len(pairs)} lists of flips"]
    return f"interval over {', '.join(parts)} and images (bootstrap)"


def _networks(pairs: Sequence[Pair], lost: Sequence[Rate]) -> list[dict[str, object]]:
    """What each pair lost, its draws averaged."""
    found: dict[Pair, list[Rate]] = {}
    for pair, rate in zip(pairs, lost, strict=True):
        found.setdefault(pair, []).append(rate)
    told = []
    for (read, network), rates in found.items():
        mean = pooled(rates)
        on = {"found_on": read.label} if read else {}
        told.append({"label": network.label, **on, "value": mean.value, "low": mean.low,
                     "high": mean.high})  # fmt: skip
    return told


def points(curves: Sequence[Curve]) -> list[dict[str, float]]:
    """Mean accuracy against flips, as plain values."""
    longest = max(len(curve.after) for curve in curves)
    return [
        {"flips": i, "value": sum(c.accuracy(i) for c in curves) / len(curves)}
        for i in range(longest)
    ]


def unmeasured(case: Case, kind: str, threat: str, why: str) -> Row:
    """A row that says why flips were not tried."""
    kind, attack = f"bit-flips-{kind}", "progressive bit search"
    return not_measured(case.family, kind, threat, case.chain, attack, why)
