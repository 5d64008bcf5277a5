"""What a trigger does to networks, and whether the gates stop those that carry it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from g2d.attacks.poisoning import trigger
from g2d.core.types import Logits, State
from g2d.defence.gates import GateResult
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, pooled, share
from g2d.tasks.inference import load_model, predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

METRIC = "trigger success"
PASSED = "passed the gates"
TARGET = 0  # the class that the trigger leads to
NO_GATE = "by default no gate looks for a backdoor: accuracy, distance and stale attacks count"


def words_of(case: Case) -> str:
    """What this attacker does, in words."""
    if case.name == "member":
        return "one poisoned member in the population"
    if case.name == "federated":
        return f"{case.number('malicious')} of {case.number('clients')} clients with a backdoor"
    return f"a trigger in {case.number('percent')} % of the training data"


def kind_of(case: Case, part: str) -> str:
    """The kind of a case's rows about one stage (`part`)."""
    return f"poisoning-{case.name}-{part}"


def _percent(case: Case) -> dict[str, Any]:
    """Which share of the data is poisoned, where it is the data."""
    return {"percent": case.number("percent")} if case.name == "data" else {}


class TriggerJudge:
    """What the trigger does to networks, on the test examples."""

    def __init__(self, case: Case, context: AttackContext) -> None:
        assert context.task.bounds is not None  # checked in `run`
        self.case, self.context, self.split = case, context, context.examples()
        others = self.split.take((self.split.y != TARGET).nonzero().flatten())
        self.stamped = Split(trigger(others.x, context.task.bounds), others.y)

    def success(self, model: Logits) -> Rate:
        """Share of images of other classes that the trigger sends to the target class."""
        sent = predict(model, self.stamped.x).argmax(1) == TARGET
        return share(int(sent.sum()), len(sent))

    def row(self, kind: str, part: str, models: Sequence[Logits], **more: object) -> Row:
        """Mean and worst trigger success of several networks."""
        rates = [self.success(model) for model in models]
        known: dict[str, object] = {
            "eps": None, "metric": METRIC, "scored": len(models), "harm": pooled(rates).value,
            "worst": max(rates, key=lambda rate: rate.value),
            "clean_accuracy": pooled([accuracy_rate(model, self.split) for model in models]),
        }  # fmt: skip
        threat = f"{words_of(self.case)}: {part}"
        kind, extra = kind_of(self.case, kind), _percent(self.case)
        return self.context.row(
            self.case, kind, threat, ATTACK, pooled(rates), extra=extra, **(known | more)
        )

    def gates(self, candidates: Sequence[GatedNetwork]) -> Row:
        """How many of the candidates that carry the backdoor pass the gates."""
        kind = kind_of(self.case, "gates")
        carrying = [c for c in candidates if self.success(c.model).value > 0.5]
        threat = f"{words_of(self.case)}: do the gates stop it"
        extra = _percent(self.case) | {
            "candidates": len(candidates),
            "carrying": len(carrying),
            "failed": [c.failed for c in candidates],
        }
        others = [c for c in candidates if c not in carrying]
        rejected = sum(bool(c.failed) for c in others)
        note = f"{NO_GATE}; of {len(others)} candidates without it {rejected} are rejected too"
        if not carrying:
            why = f"no candidate carries the backdoor; {note}"
            return not_measured(
                self.case.family,
                kind,
                threat,
                self.case.chain,
                ATTACK,
                why,
                metric=PASSED,
                extra=extra,
                seed=self.context.spec.seed,
            )
        value = share(sum(not c.failed for c in carrying), len(carrying))
        return self.context.row(
            self.case, kind, threat, ATTACK, value, eps=None, metric=PASSED, harm=value.value,
            scored=len(carrying), note=note, extra=extra,
        )  # fmt: skip


ATTACK = "BadNets, checkerboard of 4 pixels"


@dataclass(frozen=True)
class GatedNetwork:
    """A network as it is proposed, and the names of the gates that it fails."""

    model: Logits
    failed: list[str]


Gates = Callable[[State], list[GateResult]]


def judged(task: Task, states: Sequence[State], gates: Gates) -> list[GatedNetwork]:
    """States as candidates, with the gates that they fail."""
    return [
        GatedNetwork(load_model(task, s), [r.gate for r in gates(s) if not r.passed])
        for s in states
    ]
