"""What copies of an API have in common, wherever they start: the clock, agreement, the attack."""

from __future__ import annotations

from torch import Tensor

from g2d.attacks import pgd
from g2d.core.types import Logits
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.scoring import Rate, share
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split

NEXT = 5  # networks after the live one, on which the copy is scored too
STEPS = 20
REQUEST = 100  # inputs a request; a request sees one network


def request_of(case: Case) -> int:
    """Inputs a request: no more than a network answers."""
    return min(REQUEST, case.number("every") or REQUEST)


def turns_of(case: Case, context: AttackContext) -> int:
    """Networks that answer."""
    every, asked = case.number("every"), min(case.number("queries"), len(context.task.splits.guide))
    return -(-asked // every) if every else 1


def place_of(case: Case) -> str:
    """A chain and its clock, in words."""
    every = case.number("every")
    clock = f"a rotation every {every:,} queries" if every else "no rotation"
    return f"{case.chain}, {clock}"


def agreement_of(copy: Logits, model: Logits, split: Split) -> Rate:
    """Share of a split that both label alike."""
    same = predict(copy, split.x).argmax(1) == predict(model, split.x).argmax(1)
    return share(int(same.sum()), len(split))


def attack_on(model: Logits, split: Split, context: AttackContext, *name: object) -> Tensor:
    """Propose with PGD on a copy, or on whatever stands beside it."""
    return pgd(
        model, split.x, split.y, eps=context.eps, steps=STEPS, bounds=context.bounds,
        generator=context.source("extraction", "pgd", *name),
    )  # fmt: skip
