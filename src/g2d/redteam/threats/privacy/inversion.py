"""Inversion: every class reconstructed from the mean logits of several networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from g2d.attacks.inference import invert
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import share
from g2d.redteam.threats.privacy.networks import CLASSES, many, networks_of
from g2d.tasks.inference import predict
from g2d.tasks.task import Task

_LEVELS = (0.25, 0.5, 0.75)  # even greys that an inversion climbs from, as shares of the range
_RECOGNISED = "class recognised"


def inversion_rows(case: Case, context: AttackContext) -> list[Row]:
    """Reconstruct every class from the mean logits of a chain's networks."""
    count, steps = case.number("networks"), case.number("steps")
    attack = f"ART MIFace, {steps} steps"

    def unmeasured(why: str) -> list[Row]:
        threat = f"a class from the weights of {many(count)}"
        extra = {"read": count}
        return [not_measured(case.family, CLASSES, threat, case.chain, attack, why, extra=extra)]

    task, networks = context.task, networks_of(context, case.chain, count)
    if task.splits.train.x.dim() != 4 or task.bounds is None:
        return unmeasured("reconstructing a class is judged on images in a known range")
    if "retrained" not in context.spec.chains:
        return unmeasured("needs an independent network, the first of the chain 'retrained'")
    judge, *_ = context.chain("retrained").networks
    networks = tuple(network for network in networks if network != judge)
    if not networks:
        return unmeasured("the chain holds no network but the judge")
    if case.chain == "generated" and len(networks) < count:
        return unmeasured(f"there are {len(networks)} networks, not {count}")
    images = _reconstruct(context.models(networks), task, steps, context.seed("inversion", count))
    threat = f"a class from the weights of {many(len(networks))}"
    return [_judged(case, context, images, threat, attack, context.model(judge), len(networks))]


def _reconstruct(models: Sequence[nn.Module], task: Task, steps: int, seed: int) -> Tensor:
    """Climb from every level of grey to every class, (classes, levels, ...)."""
    assert task.bounds is not None  # checked by the caller
    low, high = task.bounds
    like = task.splits.train.x[0]  # of the float type that its models take
    start = torch.stack([torch.full_like(like, low + level * (high - low)) for level in _LEVELS])
    # A confident network's probability is flat: with a rate of 0.1 it climbed half as far.
    return torch.stack(
        [
            invert(models, start, label, task, steps=steps, rate=1.0, seed=seed)
            for label in range(task.classes)
        ]
    )


def _judged(
    case: Case,
    context: AttackContext,
    images: Tensor,
    threat: str,
    attack: str,
    judge: nn.Module,
    used: int,
) -> Row:
    """Ask an independent network what it sees, and compare with the class's mean image."""
    classes, levels = images.shape[:2]
    seen = predict(judge, images.flatten(0, 1)).argmax(1)
    right = seen == torch.arange(classes).repeat_interleave(levels)
    value = share(int(right.sum()), len(right))
    split = context.task.splits.train
    means = torch.stack([split.x[split.y == label].mean(0) for label in range(classes)])
    matrix = correlations(images.flatten(0, 1), means).view(classes, levels, classes).mean(1)
    own = float(matrix.diagonal().nanmean())
    other = float(matrix[~torch.eye(classes, dtype=torch.bool)].nanmean())
    note = (
        f"correlation with the class's mean train image {own:.2f}, with other classes' "
        f"{other:.2f}; chance recognises {1 / classes:.0%}"
    )
    return context.row(
        case, CLASSES, threat, attack, value, eps=None, metric=_RECOGNISED, harm=value.value,
        scored=used, gradient_steps=case.number("steps"), note=note,
        extra={"read": case.number("networks"), "correlation": own,
               "correlation_other_classes": other, "starts": levels},
    )  # fmt: skip


def correlations(images: Tensor, means: Tensor) -> Tensor:
    """Pearson correlation of images (n, ...) with mean images (classes, ...): (n, classes).

    NaN where an image or a class's mean is even.
    """
    a, b = (t.double().flatten(1) for t in (images, means))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None, :])
