"""Filters before a stolen network that refuse unusual inputs: do they find triggers?

Each scores an input, and refuses what scores below nearly all of the thief's own clean data. A
trigger that is refused counts as a miss; clean inputs that are refused are what it costs him.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from g2d.core.types import Logits
from g2d.redteam.rows import Row
from g2d.redteam.scoring import pooled, share
from g2d.redteam.threats.ownership.stolen import Stolen
from g2d.tasks.inference import predict

REFUSED = 0.01
"""Of the thief's own clean data, from which he takes his threshold."""

Score = Callable[[Logits, Tensor, Tensor], Tensor]


def _confidence(model: Logits, x: Tensor, known: Tensor) -> Tensor:
    """The largest probability (n,): Hendrycks and Gimpel 2017, arXiv 1610.02136."""
    return predict(model, x).double().softmax(1).amax(1)


def _nearness(model: Logits, x: Tensor, known: Tensor) -> Tensor:
    """Minus the distance to the nearest known input (n,): Sun et al. 2022, arXiv 2204.06507.

    There among features of a network, here among inputs; of token ids, how many differ.
    """
    p = 2.0 if x.is_floating_point() else 0.0
    apart = (torch.cdist(part, known, p) for part in x.double().flatten(1).split(500))
    return -torch.cat([part.amin(1) for part in apart])


FILTERS: dict[str, tuple[str, Score]] = {
    "filter-confidence": ("maximum softmax probability", _confidence),
    "filter-neighbour": ("distance to the nearest training input", _nearness),
}


def filtered(stolen: Stolen) -> list[Row]:
    """One row: the triggers that a filter refuses, and the clean inputs; the proof that is left."""
    case, task = stolen.case, stolen.task
    name, score = FILTERS[case.name]
    draws, most = stolen.context.source("thief", "filter"), case.number("known")
    known = task.splits.train.sample(most, draws).x.double().flatten(1)
    own = task.splits.guide.sample(most, draws).x
    x, y = stolen.asked

    def refusals(model: nn.Module) -> tuple[Tensor, Tensor]:
        least = score(model, own, known).quantile(REFUSED)
        return score(model, x, known) < least, score(model, stolen.split.x, known) < least

    hits, refused, clean = [], [], []
    for index in range(len(stolen.networks)):
        model = stolen.model(index)
        caught, lost = refusals(model)
        right = predict(model, x).argmax(1) == y
        hits.append(int((right & ~caught).sum()))
        refused.append(share(int(caught.sum()), len(caught)))
        clean.append(share(int(lost.sum()), len(lost)))
    attack = f"{name}, refuses {REFUSED:.0%} of the thief's clean data"
    note = "refused triggers count as missed"
    mean = pooled(clean)
    left = pooled([share(count, stolen.mark.each) for count in hits])
    row = {
        "kind": "ownership-filter", "metric": "triggers refused", "value": pooled(refused),
        "worst": max(refused, key=lambda rate: rate.value),
        "note": f"{note}; of clean test inputs it refuses {mean.value:.1%}",
        "extra": {"clean_refused": asdict(mean), "hits_left": asdict(left)},
    }  # fmt: skip
    return [stolen.owners("a filter of unusual inputs", attack, hits, **row)]
