"""Warm-start extraction: the copy begins as an exposed generation and learns what lives.

The attacker who holds exposed generations takes the one that answers most alike, and trains it on
further answers. Every figure stands beside a copy that begins at random weights and asks as often,
beside the exposed one as it is, and beside what the live weights themselves would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from g2d.attacks.extraction import extract
from g2d.core.types import Logits
from g2d.redteam.context import AttackContext, Case, Network, RunSpec
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, pooled
from g2d.redteam.targets import Rotating
from g2d.redteam.threats.extraction.copying import (
    NEXT,
    STEPS,
    agreement_of,
    attack_on,
    place_of,
    request_of,
    turns_of,
)
from g2d.tasks.inference import predict

NAME, AGREES, FOOLS = "warm", "extraction-warm-agreement", "extraction-warm-transfer"
WORDS = "API, probabilities, and exposed generations; trains the one that fits best into a copy"
MEMORY, LIVE = 20, 10
RATE = 5e-4  # a quarter of what random weights are trained with: the start is to be kept


def plan(spec: RunSpec) -> list[Case]:
    """The generations under three clocks, every rival without one, the permutation under one."""
    periods: dict[str, tuple[int, ...]] = {
        "generated": (0, 1000, 100), "retrained": (0,), "soup": (0,), "noise": (0,),
        "permuted": (1000,),
    }  # fmt: skip
    if spec.quick:
        periods = {"generated": (0,)}
    queries, epochs = (300, 30) if spec.quick else (5_000, 10)
    cases = []
    for chain, clocks in periods.items():
        if chain not in spec.chains or not spec.chains[chain].networks:
            continue
        drawn = chain == "generated" and "draws" in spec.chains
        reads = (chain, "draws") if drawn else (chain,)
        for every in clocks:
            options = (("every", every), ("queries", queries), ("epochs", epochs))
            cases.append(Case("extraction", NAME, chain, options, reads, cost=queries / 400))
    return cases


def run(case: Case, context: AttackContext) -> list[Row]:
    """Two rows: agreement of the copy with what is live, ASR of attacks on the copy."""
    exposed, answering = _networks(case, context)
    every = case.number("every")
    why = ""
    if not exposed:
        why = "nothing was exposed before the network that answers; generate more"
    elif every and len(answering) == 1 and not context.chain(case.chain).fixed:
        why = "one network cannot rotate; generate more"
    if why:
        words = (WORDS, place_of(case), _label(case), why)
        known: dict[str, Any] = {
            "chain": case.chain,
            "extra": {"every": every or None, "algorithm": NAME},
        }
        return [not_measured("extraction", AGREES, *words, **known)]
    return _Copies(case, context, exposed, answering).rows()


def _networks(case: Case, context: AttackContext) -> tuple[Sequence[Network], Sequence[Network]]:
    """Those that were exposed when the first query came, and those that answer, in their order.

    Where the chain is long the same answer as where copies start at random.
    """
    chain = context.chain(case.chain)
    networks = chain.networks
    if chain.fixed:
        return networks[:1], networks[1:] or networks
    first = max(len(networks) - LIVE, len(networks) // 2)
    answering = networks[first:]
    if chain.name == "generated" and "draws" in context.spec.chains:
        answering += context.chain("draws").networks
    return networks[:first][-MEMORY:], answering[: turns_of(case, context) + NEXT]


@dataclass(frozen=True, eq=False)
class _Figure:
    """What one network in place of the live one is worth: agreement with it, ASR on it."""

    agreement: Rate
    asr: Rate


class _Copies:
    """One attacker before one clock: the copy, and what stands beside it."""

    def __init__(
        self, case: Case, context: AttackContext, exposed: Sequence[Network],
        answering: Sequence[Network],
    ) -> None:  # fmt: skip
        self.case, self.context, self.exposed = case, context, exposed
        self.models = context.models(answering)
        self.live = self.models[0]
        self.split = context.examples()
        x = context.task.splits.guide.x
        order = torch.randperm(len(x), generator=context.source("extraction", NAME, "asked"))
        self.x = x[order][: case.number("queries")]

    def _target(self) -> Rotating:
        every = self.case.number("every") or None
        shape = tuple(self.x.shape[1:])
        return Rotating(self.models, shape, self.context.task.classes, every=every)

    def _fits_best(self, target: Rotating, count: int) -> int:
        """The exposed network whose answers lie nearest to the target's: least mean KL."""
        request = request_of(self.case)
        asked = self.x[:count].split(request)
        told = torch.cat([target.predict(part).log_softmax(1) for part in asked])
        apart = []
        for model in self.context.models(self.exposed):
            own = predict(model, self.x[:count]).log_softmax(1)
            apart.append(float((told.exp() * (told - own)).sum(1).mean()))
        return min(range(len(apart)), key=apart.__getitem__)

    def _trained(self, target: Rotating, model: nn.Module, x: Tensor, rate: float) -> nn.Module:
        case, context = self.case, self.context
        return extract(
            target.predict, model, x, attack="knockoff", queries=len(x),
            classes=context.task.classes, bounds=context.task.bounds, rate=rate,
            seed=context.seed("extraction", NAME, case.number("every")),
            epochs=case.number("epochs"), request=request_of(case),
        )  # fmt: skip

    def _cold(self) -> nn.Module:
        """The control: begins at random weights, asks as often."""
        seed = self.context.seed("extraction", NAME, "cold")
        return self._trained(self._target(), self.context.task.model(seed), self.x, 2e-3)

    def _figure(self, model: Logits, name: str) -> tuple[_Figure, Tensor]:
        proposed = attack_on(model, self.split, self.context, NAME, name)
        agreed = agreement_of(model, self.live, self.split)
        return _Figure(agreed, self.context.score(self.live, proposed, self.split)), proposed

    def rows(self) -> list[Row]:
        """Train, attack and score."""
        context, target = self.context, self._target()
        # A whole request, so that copies from random weights meet the same networks.
        first = max(1, min(request_of(self.case), len(self.x) // 2))
        network = self.exposed[self._fits_best(target, first)]
        start = context.task.model(0)
        start.load_state_dict(context.state(network))
        copy = self._trained(target, start, self.x[first:], RATE)
        place = target.number or 0
        self.live = self.models[place]  # when the last query was answered
        warm, proposed = self._figure(copy, "warm")
        was = context.model(network)
        (cold, _), (kept, stale) = self._figure(self._cold(), "cold"), self._figure(was, "exposed")
        white, _ = self._figure(self.live, "live")
        stayed = context.score(was, stale, self.split)
        same = {"algorithm": NAME, "every": self.case.number("every") or None}
        agreed = same | {
            "from_random_weights": asdict(cold.agreement), "as_exposed": asdict(kept.agreement),
        }  # fmt: skip
        fooled = same | {
            "from_random_weights": asdict(cold.asr), "as_exposed": asdict(kept.asr),
            "white_box": asdict(white.asr), "stayed": asdict(stayed),
        }  # fmt: skip
        following = [] if context.chain(self.case.chain).fixed else self.models[place + 1 :][:NEXT]
        if following:
            fooled["next"] = asdict(context.score_all(following, proposed, self.split)[0])
            later = [agreement_of(copy, model, self.split) for model in following]
            agreed["next"] = asdict(pooled(later))
        return self._told(warm, cold, kept, white, stayed, agreed, fooled)

    def _told(
        self, warm: _Figure, cold: _Figure, kept: _Figure, white: _Figure, stayed: Rate,
        agreed: dict[str, Any], fooled: dict[str, Any],
    ) -> list[Row]:  # fmt: skip
        case, context, asked = self.case, self.context, len(self.x)
        turns = turns_of(case, context)
        again = f"; only {len(self.models)} networks, so some answered twice"
        again *= turns > len(self.models) and not context.chain(case.chain).fixed
        known = f"{len(self.exposed)} exposed{again}; the best of them as it is"
        start = "from random weights, asking as often"
        same: dict[str, Any] = {
            "target": place_of(case), "queries": asked,
            "clean_accuracy": accuracy_rate(self.live, self.split),
        }  # fmt: skip
        return [
            context.row(
                case, AGREES, WORDS, _label(case), warm.agreement, metric="agreement", eps=None,
                harm=warm.agreement.value, extra=agreed, **same,
                note=f"{known} {_percent(kept.agreement)}; {start} {_percent(cold.agreement)}",
            ),
            context.row(
                case, FOOLS, f"{WORDS}, then attacks it",
                f"{_label(case)}, then PGD-{STEPS} on the copy", warm.asr, gradient_steps=STEPS,
                extra=fooled, **same,
                note=f"{known} {_percent(kept.asr)}; {start} {_percent(cold.asr)}; the live "
                f"weights themselves {_percent(white.asr)}; had the exposed one stayed "
                f"{_percent(stayed)}",
            ),
        ]  # fmt: skip


def _label(case: Case) -> str:
    return f"Knockoff Nets (ART, random) from an exposed one, {case.number('queries'):,} queries"


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} %"
