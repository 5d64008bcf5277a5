"""Query attacks on the API: how far an attacker comes who sees nothing but answers.

Every image is an attacker of its own: budget and clock count the queries of one image. `QueryLog`
logs them, so that one run gives the ASR at every smaller budget and no attack grades itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from g2d.attacks import pgd, project
from g2d.attacks.query import art_square, clock_square, hop_skip_jump
from g2d.redteam.context import AttackContext, Case, Network, RunSpec
from g2d.redteam.rows import Identifiers, Row, Status, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, pooled, share
from g2d.redteam.targets import (
    HttpTarget,
    QueryLog,
    TargetError,
    by_count,
    by_target,
    describe_scores,
)
from g2d.redteam.threat import CONTROLS, CurveStyle, Threat
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split

BUDGETS = (1, 10, 30, 100, 300, 1_000, 2_000, 5_000, 10_000)
_GENERATED = 10  # live generations that attackers meet; fresh draws follow when they are used up
_STARTS = 5  # attackers arrive at so many different times, so that no one network decides
_SHORT = 100  # under a clock this fast: fewer images and queries, as most time goes into its calls
_FEW = 40
_EXPOSED = 20  # generations before the live one that a stale start is crafted on
_STEPS = 20
_ATTACKS = {
    "square": ("Square (ART)", "API, scores; does not know the clock"),
    "square-clock": ("Square (ours)", "API, scores; knows the clock"),
    "square-long": ("Square (ours, long search)", "API, scores; knows the clock"),
    "square-stale": (
        "Square (ours, stale start)",
        "API, scores; knows the clock and holds exposed generations",
    ),
    "hop-skip-jump": ("HopSkipJump (ART)", "API, labels; does not know the clock"),
}
_SQUARES = ("square", "square-clock")


def plan(spec: RunSpec) -> list[Case]:
    """Every attack on the vault's generations, the two Squares on every control.

    Searches are equally long: one planned for more shrinks its squares later, so wins later.
    """
    cases = []
    for chain, periods, names in (
        ("generated", "0 1000 100", (*_SQUARES, "hop-skip-jump")),
        ("generated", "0 1000", ("square-stale",)),
        ("generated", "0", ("square-long",)),
        ("frozen", "0", (*_SQUARES, "hop-skip-jump")),
        ("permuted", "1000", _SQUARES),
        ("retrained", "0 1000", _SQUARES),
        ("soup", "0 1000", _SQUARES),
        ("noise", "0 1000", _SQUARES),
    ):
        if chain in spec.chains and spec.chains[chain].networks:
            cases += [_case(spec, chain, name, periods) for name in names]
    return [case for case in cases if not spec.quick or _is_quick(case)]


def _is_quick(case: Case) -> bool:
    if case.chain == "generated":
        return case.name != "square-long"
    return case.chain == "frozen" and case.name != "hop-skip-jump"


def _case(spec: RunSpec, chain: str, name: str, periods: str) -> Case:
    generated, labels = chain == "generated", name == "hop-skip-jump"
    reads = (chain, "draws") if generated and "draws" in spec.chains else (chain,)
    images, budget = (60, 10_000) if name == "square-long" else (30 if labels else 80, 5_000)
    if spec.quick:
        images, budget = (8, 200) if labels else (24, 300)
        periods = "0 100" if generated else "0"
    options = (
        ("images", images), ("budget", budget), ("at", budget), ("periods", periods),
    )  # fmt: skip
    cost = images * budget / (16_000 if labels else 40_000) * len(periods.split())
    return Case("query", name, chain, options, reads, cost=1.0 if chain == "frozen" else cost)


def plan_service(spec: RunSpec, url: str, model: str) -> list[Case]:
    """The two Squares on a live service; it has its own clock, which the attacker does not know."""
    images, budget = (16, 200) if spec.quick else (50, 2_000)
    options = (
        ("url", url), ("model", model), ("images", images), ("budget", budget), ("at", budget),
    )  # fmt: skip
    cost = images * budget / 2_000
    return [Case("query", name, "service", options, cost=cost) for name in _SQUARES]


def run(case: Case, context: AttackContext) -> list[Row]:
    """Attack a chain once for every period of its clock, or a live service."""
    label, threat = _label(case), _ATTACKS[case.name][1]
    why = _unfit(case, context)
    if why:
        seed = context.spec.seed
        return [not_measured("query", _kind(case), threat, case.chain, label, why, seed=seed)]
    if case.option("url"):
        return [_service_row(case, context)]
    return _Attackers(case, context).rows()


def _unfit(case: Case, context: AttackContext) -> str:
    """Why ART's attacks do not apply; ours asks for neither images nor a range."""
    if case.name not in ("square", "hop-skip-jump"):
        return ""
    shape = tuple(context.examples(1).x.shape[1:])
    if len(shape) != 3 or min(shape[1:]) < 3:
        return f"ART's attacks are set up for images (channels, H, W), not for {shape}"
    return "" if context.bounds else "these attacks need the range of the data, and it has none"


def _label(case: Case) -> str:
    return f"{_ATTACKS[case.name][0]}, {case.number('at'):,} queries"


def _kind(case: Case) -> str:
    return f"query-{case.name}"


def _launch(
    case: Case,
    context: AttackContext,
    lanes: QueryLog,
    every: int | None,
    begin: Tensor | None = None,
) -> None:
    """Let the attack search; what it won stands in the log."""
    x, y = lanes.split.x, lanes.split.y
    bounds, classes = context.bounds, context.task.classes
    seed = context.seed("query", case.name, every)
    if case.name == "square":
        assert bounds is not None, "checked before"
        art_square(
            lanes, x, y,
            eps=context.eps, budget=lanes.budget, seed=seed, bounds=bounds, classes=classes,
        )  # fmt: skip
    elif case.name == "hop-skip-jump":
        assert bounds is not None, "checked before"
        hop_skip_jump(lanes, x, y, seed=seed, bounds=bounds, classes=classes)
    else:
        generator = torch.Generator().manual_seed(seed)
        clock_square(
            lanes, x, y,
            eps=context.eps, budget=lanes.budget, generator=generator, bounds=bounds, every=every,
            start=begin,
        )  # fmt: skip


def _curve(lanes: QueryLog) -> list[dict[str, float]]:
    known = [budget for budget in BUDGETS if budget <= lanes.budget]
    if lanes.budget not in known:
        known.append(lanes.budget)
    return [{"queries": queries} | asdict(lanes.asr(queries)) for queries in known]


class _Attackers:
    """One attack on the networks of one chain, under every clock."""

    def __init__(self, case: Case, context: AttackContext) -> None:
        self.case, self.context = case, context
        self.at = case.number("at")
        self.periods = [int(period) for period in str(case.option("periods")).split()]
        self.fixed = context.chain(case.chain).fixed
        networks = self._networks()
        self.models: list[nn.Module] = context.models(networks)
        self.examples = context.examples(case.number("images"))
        starts = min(_STARTS, len(networks))
        if case.name != "hop-skip-jump":
            # At least 20 images a network: smaller batches cost more time an image.
            starts = max(1, min(starts, len(self.examples) // 20))
        start = torch.arange(len(self.examples)) % starts
        right = self._right(self.examples, start)
        self.split, self.start = self.examples.take(right), start[right]
        self.begin = self._stale() if case.name == "square-stale" else None

    def _networks(self) -> Sequence[Network]:
        """The networks that attackers meet, in their order."""
        chain = self.context.chain(self.case.chain)
        networks = own = chain.networks
        if chain.name == "generated":
            # The first may be the base, which nothing generated.
            networks = own = (networks[1:] or networks)[-_GENERATED:]
            if "draws" in self.context.spec.chains:
                networks += self.context.chain("draws").networks
        # Networks that were live, so exposed, when the first attacker comes.
        self.before = len(chain.networks) - len(own)
        longest = max(self._turns(every) for every in self.periods) + 1
        return networks[: longest + _STARTS]

    def _turns(self, every: int) -> int:
        """Networks that one attacker meets at its largest budget."""
        budget = self.at if every <= _SHORT else self.case.number("budget")
        return -(-budget // every) if every else 1

    def _right(self, split: Split, start: Tensor) -> Tensor:
        """Images that the network which they meet first classifies correctly."""
        scores, _ = by_count(self.models, None, start)(
            split.x, torch.arange(len(split)), torch.ones_like(split.y)
        )
        return (scores.argmax(1) == split.y).nonzero()[:, 0]

    def _exposed(self, start: int) -> Sequence[Network]:
        """The last generations before the one that is live when an attacker comes."""
        return self.context.chain(self.case.chain).networks[: self.before + start][-_EXPOSED:]

    def _stale(self) -> Tensor | None:
        """Proposals of a joint attack on what was exposed when each attacker comes."""
        begin, context = self.split.x.clone(), self.context
        for start in self.start.unique().tolist():
            if not self._exposed(start):
                return None
            own = (self.start == start).nonzero()[:, 0]
            begin[own] = pgd(
                context.models(self._exposed(start)), self.split.x[own], self.split.y[own],
                eps=context.eps, steps=_STEPS, bounds=context.bounds,
                generator=context.source("query", "stale", start),
            )  # fmt: skip
        return begin

    def _why(self) -> str:
        """Why there is nothing to measure, or ""."""
        if not len(self.split):
            return "no image is classified correctly to begin with"
        if self.case.name == "square-stale" and self.begin is None:
            return "no generation is exposed yet; rotate first"
        return ""

    def rows(self) -> list[Row]:
        """A row for every clock."""
        why = self._why()
        if why:
            return [self._no_row(every, why) for every in self.periods]
        logs: dict[int, QueryLog] = {}
        rows = []
        for every in self.periods:
            if every and len(self.models) == 1 and not self.fixed:
                why = "one network cannot rotate; generate more"
                rows.append(self._no_row(every, why))
                continue
            logs[every] = self._attack(every)
            rows.append(self._row(every, logs[every], logs.get(0)))
        full = self.case.chain == "generated" and not self.context.spec.quick
        if full and self.begin is None and 0 in logs and len(self.models) > 1:
            rows.append(self._row(10_000, logs[0], logs[0]))
        return rows

    def _attack(self, every: int) -> QueryLog:
        short = 0 < every <= _SHORT
        few = min(_FEW, len(self.split)) if short else len(self.split)
        lanes = QueryLog(
            by_count(self.models, every or None, self.start),
            self.split.take(torch.arange(few)),
            eps=self.context.eps,
            budget=self.at if short else self.case.number("budget"),
            bounds=self.context.bounds,
        )
        begin = None if self.begin is None else self.begin[:few]
        _launch(self.case, self.context, lanes, every or None, begin)
        return lanes

    def _target(self, every: int) -> str:
        clock = f"a rotation every {every:,} queries" if every else "no rotation"
        return f"{self.case.chain}, {clock}"

    def _no_row(self, every: int, why: str) -> Row:
        threat, seed = _ATTACKS[self.case.name][1], self.context.spec.seed
        kind, target = _kind(self.case), self._target(every)
        return not_measured("query", kind, threat, target, _label(self.case), why, seed=seed)

    def _row(self, every: int, lanes: QueryLog, never: QueryLog | None) -> Row:
        value = lanes.asr(self.at)
        met = self._met(every, lanes)
        extra: dict[str, Any] = self._durable(every, lanes) | {
            "curve": _curve(lanes),
            "unattacked": asdict(self._unattacked(met)),
            "every": every or None,
            "spent": round(float(lanes.spent.double().mean()), 1),
        }
        notes = ["budget and clock count the queries of one image"]
        steps = None
        if self.begin is not None:
            known = [len(self._exposed(start)) for start in self.start.unique().tolist()]
            steps = _STEPS * max(known)
            notes.append(f"begins at PGD-{_STEPS}, jointly on up to {max(known)} exposed networks")
        if bool(self.start.any()):
            notes.append(f"attackers begin at {int(self.start.max()) + 1} different networks")
        if never is not None and every:
            same = never.asr(self.at, len(lanes.split))
            extra["never"] = asdict(same)
            notes.append(_compared(value, same))
        notes += self._caveats(every)
        models = [self.models[place] for place in sorted(set(met.flatten().tolist()))]
        clean = pooled([accuracy_rate(model, self.examples) for model in models])
        return self.context.row(
            self.case, _kind(self.case), _ATTACKS[self.case.name][1], _label(self.case), value,
            target=self._target(every), clean_accuracy=clean, scored=len(models),
            queries=self.at, gradient_steps=steps, note="; ".join(notes), extra=extra,
        )  # fmt: skip

    def _caveats(self, every: int) -> list[str]:
        if not every:
            return []
        notes = ["durable: share of first finds that work again after the next rotation, as sent"]
        if self.fixed:
            notes.append("the same function after every rotation")
        if every == 10_000:
            notes.append("the same run as without: the clock does not tick within the budget")
        if self._turns(every) > len(self.models):
            notes.append(f"only {len(self.models)} networks: an attacker meets some twice")
        return notes

    def _met(self, every: int, lanes: QueryLog) -> Tensor:
        """Places of the networks that each lane meets within `at` queries (n, turns)."""
        turns = -(-self.at // every) if every else 1
        start = self.start[: len(lanes.split)]
        return (start[:, None] + torch.arange(turns)) % len(self.models)

    def _durable(self, every: int, lanes: QueryLog) -> dict[str, Any]:
        """How many of the finds also fool the network after the next rotation, and of all lanes.

        Without a rotation every find goes on working; without a find there is no such share.
        """
        won = lanes.won(self.at)
        chosen = won.nonzero()[:, 0]
        kept = len(chosen)
        if every and kept:
            found = project(lanes.found, lanes.split.x, self.context.eps, self.context.bounds)
            following = by_count(self.models, None, lanes.network + 1)
            scores, _ = following(found[chosen], chosen, torch.ones_like(chosen))
            kept = int((scores.argmax(1) != lanes.split.y[chosen]).sum())
        return {
            "durable": asdict(share(kept, len(chosen))) if len(chosen) else None,
            "durable_of_all": asdict(share(kept, len(won))),
        }

    def _unattacked(self, met: Tensor) -> Rate:
        """Share of lanes whose clean image some network that they meet gets wrong by itself."""
        split = self.split.take(torch.arange(len(met)))
        wrong = torch.zeros(len(self.models), len(met), dtype=torch.bool)
        for place in met.unique().tolist():
            wrong[place] = predict(self.models[place], split.x).argmax(1) != split.y
        lost = wrong[met, torch.arange(len(met))[:, None]].any(1)
        return share(int(lost.sum()), len(met))


def _compared(value: Rate, never: Rate) -> str:
    """What rotation did to the ASR, plainly, whichever way it went."""
    without = f"{never.value:.0%} without rotation, on the same images"
    if value.value > never.value:
        return f"MORE than the {without}: every rotation gives this attacker another network to try"
    return f"{without}"


def _service_row(case: Case, context: AttackContext) -> Row:
    """Attack a live service; what was found before it died is reported."""
    url = str(case.option("url"))
    lanes: QueryLog | None = None
    asked, note = 0, ""
    try:
        service = HttpTarget(url, str(case.option("model")))
        split = context.examples(case.number("images"))
        expected = (tuple(split.x.shape[1:]), context.task.classes)
        if (service.shape, service.classes) != expected:
            why = f"it maps {service.shape} to {service.classes} classes, the task {expected}"
            return _unmeasured(case, context, why)
        scores = service.predict(split.x)
        split = split.take((scores.argmax(1) == split.y).nonzero()[:, 0])
        note = f"the service answers {describe_scores(scores)}"
        if not len(split):
            why = "the service classifies no image correctly to begin with"
            return _unmeasured(case, context, why)
        lanes = QueryLog(
            by_target(service),
            split, eps=context.eps, budget=case.number("budget"), bounds=context.bounds,
        )  # fmt: skip
        _launch(case, context, lanes, None)
    except TargetError as error:
        asked = 0 if lanes is None else int(lanes.spent.max())
        row = _told(case, context, lanes, f"died after {asked:,} queries an image: {error}")
        return replace(row, status=Status.DIED, queries=asked)
    return _told(case, context, lanes, note)


def _unmeasured(case: Case, context: AttackContext, why: str) -> Row:
    url, threat = str(case.option("url")), "API, scores; does not know the clock"
    seed = context.spec.seed
    return not_measured("query", _kind(case), threat, url, _label(case), why, seed=seed)


def _told(case: Case, context: AttackContext, lanes: QueryLog | None, note: str) -> Row:
    """The row of a service: ASR so far, and which generations answered with a mistake."""
    url, threat = str(case.option("url")), "API, scores; does not know the clock"
    value, extra = None, {}
    if lanes is not None:
        value = lanes.asr(case.number("at"))
        fooled = lanes.network[lanes.first > 0]
        generations = sorted({int(number) for number in fooled if number >= 0})
        extra = {"curve": _curve(lanes), "generations": generations}
    return context.row(
        case, _kind(case), threat, _label(case), value,
        target=url, queries=case.number("at"), note=note, extra=extra,
    )  # fmt: skip


THREAT = Threat(
    name="query",
    title="Query attacks on the API",
    question="How often does who only sees answers win, and do the finds outlive a rotation?",
    ids=Identifiers(
        atlas="AML.T0043.001 Craft Adversarial Data: Black-Box Optimization",
        nist="NISTAML.025 Black-box Evasion",
        owasp="ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
    on_service=plan_service,
    chains=CONTROLS | {"draws"},
    curve=CurveStyle(
        x="queries",
        by=("attack", "control"),
        across="queries spent on one example",
        title="Attacks that only ask questions",
        reads=(
            "One panel for each attack, one line for each clock. The attacker sees answers and "
            "never parameters, and adapts as they come. Rotation helps where a line lies under "
            "the one without rotation; where it lies above, every rotation gave the attacker one "
            "more network to try."
        ),
        hides=(
            "What a win is worth: it counts once any network that answered was fooled, even if "
            "the next one reads the example right again (“durable” in the rows counts finds that "
            "also fool the next). More queries can only help the attacker."
        ),
    ),
)
