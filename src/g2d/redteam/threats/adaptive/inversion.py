"""Span inversion: answers of the live generation tell the generator's owner which one it is.

The owner fits coordinates to the answers (`owner`) and attacks what comes out as if it were the
live one. Every figure stands beside what the same attack wins with the live weights themselves,
with the last exposed ones in their place, and had those stayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from g2d.attacks.crafting import craft, label_of
from g2d.attacks.eot import Tricks, eot_pgd
from g2d.attacks.reconstruction import Answers
from g2d.core.types import Logits, State
from g2d.generator import hidden_units
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, pooled, share
from g2d.redteam.threats.adaptive.owner import Fit, Owner
from g2d.tasks.attack import BALL
from g2d.tasks.inference import load_model, predict
from g2d.weights.symmetry import aligned_distances

KIND, NAME = "adaptive-inversion", "inversion"
WORDS = (
    "owns generator and exposed set, asks the live one: fits coordinates to its answers, attacks "
    "what they give"
)
CHAINS = ("generated", "soup", "noise")
MEMORY, LIVE = 24, 3
TRICKS = Tricks("probability", 1.0)
_SECOND = 55e-6  # CPU seconds of one gradient of one MNIST image, measured on one core


def plan(spec: RunSpec) -> list[Case]:
    """One case a chain: all numbers of answers, on the last networks of it."""
    n, steps, fit, answers = (250, 100, 200, "100 1000 5000")
    if spec.quick:
        n, steps, fit, answers = (60, 20, 40, "100")
    options = (("n", n), ("steps", steps), ("fit", fit), ("answers", answers))
    cost = LIVE * (2 + len(answers.split())) * n * steps * _SECOND + LIVE * fit * 0.05
    return [
        Case("adaptive", NAME, name, options, (name,), True, cost)
        for name in (CHAINS[:1] if spec.quick else CHAINS)
        if name in spec.chains and "draws" in spec.chains
    ]


def run(case: Case, context: AttackContext) -> list[Row]:
    """A row for each number of answers."""
    chain = context.chain(case.chain)
    label = _label(case, context)
    if len(chain.networks) < 2:
        why = f"{case.chain} holds one network: nothing was exposed before it; generate more"
        return [not_measured("adaptive", KIND, WORDS, case.chain, label, why)]
    attack, rows = _Inversion(case, context), []
    known = len(attack.asked)
    wanted = sorted(int(count) for count in str(case.option("answers")).split())
    for place, count in enumerate(wanted):
        if place and wanted[place - 1] >= known:
            why = f"the attacker has {known:,} inputs to ask about: no more answers than above"
            extra = {"attacker": NAME, "answers": count}
            told = not_measured(
                "adaptive", KIND, WORDS, case.chain, f"{label}, {count:,} answers", why, extra=extra
            )
            rows.append(told)
            continue
        rows.append(attack.row(min(count, known)))
    return rows


@dataclass(frozen=True)
class _Live:
    """A network that is live: what it is, and how much its own weights would give away."""

    model: nn.Module
    state: State
    white_box: Rate
    stale: Rate


class _Inversion:
    """One owner before some networks of a chain, each of which is asked by itself."""

    def __init__(self, case: Case, context: AttackContext) -> None:
        self.case, self.context = case, context
        self.split = context.examples(case.number("n"))
        chain = context.chain(case.chain)
        exposed, later = chain.split(min(MEMORY, max(1, len(chain.networks) - LIVE)), LIVE)
        self.exposed = [context.state(network) for network in exposed]
        last = context.model(exposed[-1])
        models = context.models(later)  # before the owner: what the task's models answer is known
        source = context.source("inversion", case.chain, "draws")
        logits = not context.remark
        self.owner = Owner(
            context.task, context.defence.generator, self.exposed, source, logits=logits
        )
        order = torch.randperm(
            len(context.task.splits.guide), generator=context.source("inversion", "asked")
        )
        self.asked = context.task.splits.guide.x[order]
        stale = self._craft(last, "exposed")
        self.stayed = context.score(last, stale, self.split)
        self.live = [
            _Live(
                model, context.state(network),
                context.score(model, self._craft(model, "live", place), self.split),
                context.score(model, stale, self.split),
            )
            for place, (model, network) in enumerate(zip(models, later, strict=True))
        ]  # fmt: skip
        self.chain = hidden_units(context.task)
        self.nearest = [
            min(aligned_distances(self.exposed, one.state, self.chain)) for one in self.live
        ]

    def _craft(self, model: Logits, *name: object) -> Tensor:
        source = self.context.source("inversion", self.case.chain, *name)
        if self.context.spec.attack != BALL:
            return craft(self.context.task, model, self.split.x, self.split.y, generator=source)
        return eot_pgd(
            lambda: [model], self.split.x, self.split.y, eps=self.context.eps,
            steps=self.case.number("steps"), generator=source, bounds=self.context.bounds,
            tricks=TRICKS,
        )  # fmt: skip

    def _found(self, live: _Live, place: int, count: int) -> tuple[Fit, State, Logits]:
        """What an owner takes a live network for, by so many answers; as a network."""
        x = self.asked[:count]
        source = self.context.source("inversion", self.case.chain, "fit", place, count)
        fit = self.owner.find(Answers(x, predict(live.model, x)), self.case.number("fit"), source)
        state = self.owner.generator.to_state(fit.v)
        if self.context.remark:
            return fit, state, lambda inputs: self.owner.run(fit.v, inputs)
        return fit, state, load_model(self.context.task, state)

    def row(self, count: int) -> Row:
        """Mean over the live networks after so many answers of each."""
        context, rates, agreed, distances, ways = self.context, [], [], [], []
        whole = context.examples()
        for place, live in enumerate(self.live):
            fit, state, model = self._found(live, place, count)
            proposed = self._craft(model, "fit", place, count)
            rates.append(context.score(live.model, proposed, self.split))
            same = predict(model, whole.x).argmax(1) == predict(live.model, whole.x).argmax(1)
            agreed.append(share(int(same.sum()), len(whole)))
            distances.append(aligned_distances([live.state], state, self.chain)[0])
            ways.append(fit.way)
        white = pooled([live.white_box for live in self.live])
        stale = pooled([live.stale for live in self.live])
        label = f"{_label(self.case, context)}, {count:,} answers"
        return context.row(
            self.case, KIND, WORDS, label, pooled(rates),
            worst=max(rates, key=lambda rate: rate.value), scored=len(rates), queries=count,
            clean_accuracy=pooled([accuracy_rate(one.model, self.split) for one in self.live]),
            gradient_steps=self.case.number("fit") + self.case.number("steps"),
            note=f"{len(self.exposed)} exposed, {len(self.split)} images; the live weights "
            f"themselves give {_percent(white)}, the last exposed ones {_percent(stale)}; had "
            f"those stayed {_percent(self.stayed)}",
            extra={
                "attacker": NAME, "answers": count, "white_box": asdict(white),
                "last_exposed": asdict(stale), "stayed": asdict(self.stayed),
                "agreement": asdict(pooled(agreed)), "distance": _mean(distances),
                "distance_of_nearest_exposed": _mean(self.nearest),
                "ways": sorted(ways),
            },
        )  # fmt: skip


def _label(case: Case, context: AttackContext) -> str:
    steps = case.number("steps")
    ball = context.spec.attack == BALL
    how = f"MI-FGSM {steps} steps" if ball else label_of(context.task, steps)
    return f"{how} on the fit of {case.number('fit')} steps"


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} %"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
