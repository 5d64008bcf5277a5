"""Networks that a thief took, and whether they carry the mark; how both sides count what is left.

The owner counts the triggers of the set that is asked first, and their exact p. The thief counts
accuracy on test examples, data and gradient steps; he knows no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from g2d.core.types import State
from g2d.errors import ClaimError
from g2d.protect.watermark import p_value
from g2d.protect.watermark.chance import LIKELY
from g2d.protect.watermark.mark import Mark
from g2d.redteam.context import AttackContext, Case, Network
from g2d.redteam.rows import Row
from g2d.redteam.scoring import Rate, accuracy_rate, pooled, share
from g2d.tasks.inference import load_model, predict

MARKED, UNMARKED = "generated", "retrained"
"""The chain that is stolen; the control: networks from fresh seeds, trained without the mark."""


@dataclass(frozen=True)
class Spent:
    """What an attack cost a thief beside accuracy: gradient steps, labelled examples, answers."""

    steps: int | None = None
    examples: int = 0
    queries: int | None = None


class Stolen:
    """The newest networks of a case's chain, and what is judged of what a thief makes of them.

    Raises:
        ClaimError: no generation carries the mark. KeyFileError: the key is not the vault's.
        TaskError: the task's inputs are unbounded, or have changed.
    """

    def __init__(self, case: Case, context: AttackContext) -> None:
        self.case, self.context, self.task = case, context, context.task
        spec = context.spec
        mark = Mark.of(spec.settings.watermark, self.task, Path(spec.vault))
        assert mark is not None  # `plan` makes no such case
        self.mark: Mark = mark
        newest = context.chain(case.chain).networks[::-1]
        carrying = newest if case.chain == UNMARKED else filter(self._carries, newest)
        self.networks: tuple[Network, ...] = tuple(islice(carrying, case.number("networks")))
        if not self.networks:
            raise ClaimError(
                "no generation carries the mark, so nothing can be removed: `g2d watermark add`"
                " marks the population, then generate"
            )
        self.split = context.examples()

    def _carries(self, network: Network) -> bool:
        """Whether it hits as many triggers of the first set as the gate asks for."""
        return self.hits(self.context.model(network)) / self.mark.each >= self.mark.least

    # --- what a thief works with ---

    def state(self, index: int) -> State:
        """The n-th stolen network, the newest first."""
        return self.context.state(self.networks[index])

    def model(self, index: int) -> nn.Module:
        """The n-th stolen network, as it answers."""
        return self.context.model(self.networks[index])

    @cached_property
    def whole(self) -> list[State]:
        """All networks of the chain that a thief may have; the base is no generated one."""
        networks = self.context.chain(self.case.chain).networks
        return [self.context.state(one) for one in networks[1:] or networks]

    def draws(self, index: int) -> torch.Generator:
        """The thief's own randomness for the n-th network."""
        return self.context.source("thief", self.case.name, self.case.chain, index)

    # --- what is left ---

    @property
    def asked(self) -> tuple[Tensor, Tensor]:
        """The triggers and labels of the set that is asked first."""
        return self.mark.x[: self.mark.each], self.mark.y[: self.mark.each]

    def hits(self, model: nn.Module) -> int:
        """Triggers of that set that a network answers as the key says."""
        x, y = self.asked
        return int((predict(model, x).argmax(1) == y).sum())

    def p(self, hits: int) -> float:
        """What hits are worth, exactly; any set but the reserve could have been shown."""
        sets = max(1, self.mark.sets - 1)
        return p_value(hits, self.mark.each, self.task.classes, sets)

    def judged(
        self, threat: str, attack: str, states: Sequence[State], spent: Spent, **more: Any
    ) -> list[Row]:
        """The owner's row and the thief's, of what a thief made of each stolen network."""
        models = [load_model(self.task, state) for state in states]
        row = self.owners(threat, attack, [self.hits(model) for model in models], **more)
        return [row, self._thiefs(threat, attack, models, spent)]

    def owners(self, threat: str, attack: str, hits: Sequence[int], **more: Any) -> Row:
        """What is left of the proof: hits, the p of the network that fares worst for the owner."""
        worth = [self.p(count) for count in hits]
        proven = sum(p < LIKELY for p in worth)
        extra = {
            "algorithm": self.case.name, "proven": share(proven, len(hits)).value,
            "largest_p": max(worth), "hits": list(hits), "p": worth, **more.pop("extra", {}),
        }  # fmt: skip
        rates = [share(count, self.mark.each) for count in hits]
        told = f"{proven} of {len(hits)} proven at p < 2^-64, the largest p is {max(worth):.1e}"
        if note := more.pop("note", ""):
            told = f"{told}; {note}"
        control = self.case.chain == UNMARKED
        known: dict[str, Any] = {
            "eps": None, "metric": "triggers hit", "scored": len(hits), "note": told,
            "harm": None if control else 1 - proven / len(hits), "extra": extra,
            "worst": min(rates, key=lambda rate: rate.value),
        }  # fmt: skip
        kind, value = more.pop("kind", "ownership-mark"), more.pop("value", pooled(rates))
        return self.context.row(self.case, kind, threat, attack, value, **(known | more))

    def _thiefs(self, threat: str, attack: str, models: list[nn.Module], spent: Spent) -> Row:
        """What it cost: examples that the stolen network got right and the copy does not."""
        stolen = [self._right(self.model(index)) for index in range(len(models))]
        left = [self._right(model) for model in models]
        lost = [
            share(int((before & ~after).sum()), len(after))
            for before, after in zip(stolen, left, strict=True)
        ]
        before = pooled([accuracy_rate(self.model(i), self.split) for i in range(len(models))])
        extra = {
            "algorithm": self.case.name, "examples": spent.examples, "before": asdict(before),
        }  # fmt: skip
        least: Rate = min(lost, key=lambda rate: rate.value)
        return self.context.row(
            self.case, "ownership-price", threat, attack, pooled(lost), eps=None,
            metric="accuracy lost", scored=len(models), worst=least, queries=spent.queries,
            gradient_steps=spent.steps, extra=extra, note=_paid(spent),
            clean_accuracy=pooled([accuracy_rate(model, self.split) for model in models]),
        )  # fmt: skip

    def _right(self, model: nn.Module) -> Tensor:
        return predict(model, self.split.x).argmax(1) == self.split.y


def _paid(spent: Spent) -> str:
    if spent.queries is not None:
        return f"needs {spent.queries:,} inputs of the task, unlabelled"
    if spent.examples:
        return f"needs {spent.examples:,} labelled examples: here the owner's own training data"
    return "needs no data"
