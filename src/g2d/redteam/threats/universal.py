"""Universal perturbations: one change for all inputs, fitted on past networks, used on later ones.

The attacker fits on one part of data of their own (the guide split) and keeps what does best on
another part; the test examples only score.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from g2d.attacks import project, universal
from g2d.attacks.tables import is_region
from g2d.redteam.context import AttackContext, Case, Chain, Network, RunSpec
from g2d.redteam.rows import Identifiers, Row, not_measured
from g2d.redteam.scoring import Rate
from g2d.redteam.threat import CONTROLS, Threat
from g2d.tasks.splits import Split

CHAINS = ("generated", "frozen", "unrotated", "retrained", "soup", "noise", "permuted")
PATTERNS = ("generated", "frozen", "unrotated")
LATER = 11
EXPOSED = 10
BATCH = 64
DRAWN = 2  # networks that a step draws: all of ten would cost five times as much
RESTARTS = 2
RANDOM = 4  # patterns of random signs, beside the two constants
HELD = 500  # guide examples that nothing is fitted on


def plan(spec: RunSpec) -> list[Case]:
    """A case for each chain and number of exposed networks; patterns that nobody fitted beside."""
    cases = []
    for name in CHAINS:
        chain = spec.chains.get(name)
        if chain is None:
            continue
        most = 1 if chain.fixed else max(1, len(chain.networks) - 1)
        n, steps = (100, 50) if spec.quick else (1000 if name == "generated" else 500, 600)
        for k in sorted({1, min(EXPOSED, most)}):
            # What is fitted on the scored network itself; on a fixed chain that is this fit.
            own = int(name == "generated" or (name == "retrained" and k == 1))
            options = (("k", k), ("n", n), ("steps", steps), ("later", LATER),
                       ("restarts", RESTARTS), ("drawn", DRAWN), ("own", own))  # fmt: skip
            cost = 1 + RESTARTS * (min(k, DRAWN) + own) * steps * BATCH * 60e-6
            cases.append(Case("universal", "fitted", name, options, (name,), cost=cost))
        if name in PATTERNS:
            known = (("k", 1), ("n", n), ("later", LATER), ("patterns", 2 + RANDOM))
            cases.append(Case("universal", "pattern", name, known, (name,), cost=1))
    return cases


def run(case: Case, context: AttackContext) -> list[Row]:
    """Fit on the exposed networks, score on the later ones; and on the scored one itself."""
    chain, k = context.chain(case.chain), case.number("k")
    threat = f"universal, fitted on the last {k}" if k > 1 else "universal, fitted on one"
    kind, attack = (
        "universal-fitted",
        f"signed ascent, {case.number('steps')} batches of {BATCH}, best of {RESTARTS}",
    )
    if case.name == "pattern":
        threat = "universal, nothing fitted: constant or random pattern, best on guide data"
        kind, attack = (
            "universal-pattern",
            f"best of +eps, -eps and {RANDOM} patterns of random signs",
        )
    if len(chain.networks) < 2 and not chain.fixed:
        why = f"{case.chain} holds one network: nothing is stale yet; generate more"
        return [not_measured("universal", kind, threat, case.chain, attack, why)]
    return [(_pattern if case.name == "pattern" else _fitted)(case, context, chain, threat, attack)]


def _fitted(case: Case, context: AttackContext, chain: Chain, threat: str, attack: str) -> Row:
    exposed, later = chain.split(case.number("k"), case.number("later"))
    split = context.examples(case.number("n"))
    fit = _Fit(case, context)
    name, delta = fit.best(exposed)
    proposed = project(split.x + delta, split.x, context.eps, context.bounds)
    mean, worst, clean = context.score_all(context.models(later), proposed, split)
    last = context.model(later[-1])
    same = context.score(last, proposed, split)
    white: Rate | None = same if chain.fixed else None
    if case.number("own"):
        known = project(split.x + fit.best(later[-1:])[1], split.x, context.eps, context.bounds)
        white = context.score(last, known, split)
    extra: dict[str, object] = {"exposed": case.number("k"), "kept": name}
    if white is not None:
        extra["white_box"] = {"value": white.value, "low": white.low, "high": white.high}
    steps = case.number("steps") * case.number("restarts")
    return context.row(
        case, "universal-fitted", threat, attack, mean, worst=worst, clean_accuracy=clean,
        scored=len(later), gradient_steps=steps * min(len(exposed), case.number("drawn")),
        note=_remark(case, context, white, same, len(exposed), name), extra=extra,
    )  # fmt: skip


def _pattern(case: Case, context: AttackContext, chain: Chain, threat: str, attack: str) -> Row:
    """What a pattern does that no gradient has seen."""
    exposed, later = chain.split(case.number("k"), case.number("later"))
    split = context.examples(case.number("n"))
    name, delta = _Fit(case, context).chosen(exposed, _patterns(context))
    proposed = project(split.x + delta, split.x, context.eps, context.bounds)
    mean, worst, clean = context.score_all(context.models(later), proposed, split)
    return context.row(
        case, "universal-pattern", threat, attack, mean, worst=worst, clean_accuracy=clean,
        scored=len(later), gradient_steps=0, note=f"kept: {name}", extra={"kept": name},
    )  # fmt: skip


def _remark(
    case: Case, context: AttackContext, white: Rate | None, same: Rate, exposed: int, name: str
) -> str:
    words = [f"kept: {name}"]
    if white is not None:
        words.append(f"{100 * white.value:.1f} % where it is fitted on the scored network itself")
    if white is not None and same.value > white.value:
        words.append(
            f"on that network this one, transferred, beats it ({100 * same.value:.1f} %): what is "
            "fitted there is no upper bound"
        )
    if case.number("drawn") < exposed:
        words.append(f"each step draws {case.number('drawn')} of the {exposed} networks")
    if case.number("n") < context.spec.n:
        words.append(f"{case.number('n')} images")
    if 1 < exposed < EXPOSED:
        words.append(
            f"{EXPOSED} exposed were asked for; {case.chain} has {exposed} before the rest"
        )
    return "; ".join(words)


def _patterns(context: AttackContext) -> dict[str, Tensor]:
    """Perturbations that need no network: both constants, and random signs."""
    one = torch.full_like(context.task.splits.guide.x[0], context.eps)
    if is_region(context.bounds):
        one = context.bounds.radius(context.eps, one)
    source = context.source("universal", "patterns")
    found = {"constant +eps": one, "constant -eps": -one}
    for number in range(RANDOM):
        signs = torch.randint(2, one.shape, generator=source) * 2 - 1
        found[f"random signs {number + 1}"] = one * signs
    return found


class _Fit:
    """The attacker's own data: one part to fit on, another to choose by."""

    def __init__(self, case: Case, context: AttackContext) -> None:
        self.case, self.context = case, context
        guide = context.task.splits.guide
        mixed = guide.sample(len(guide), context.source("universal", "guide"))
        held = max(1, min(HELD, len(mixed) // 4))
        self.held = mixed.take(range(held))
        self.own: Split = mixed.take(range(held, len(mixed))) if len(mixed) > 1 else mixed

    def chosen(
        self, networks: Sequence[Network], candidates: dict[str, Tensor]
    ) -> tuple[str, Tensor]:
        """The candidate that flips most held-out examples of these networks."""

        def flipped(delta: Tensor) -> float:
            models = self.context.models(networks)
            return self.context.score_all(models, self.held.x + delta, self.held)[0].value

        return max(candidates.items(), key=lambda item: flipped(item[1]))

    def best(self, networks: Sequence[Network]) -> tuple[str, Tensor]:
        """Fit from nothing and from the best pattern; keep the best of all, patterns included."""
        name, pattern = self.chosen(networks, _patterns(self.context))
        found = {name: pattern}
        for restart in range(self.case.number("restarts")):
            start = pattern if restart % 2 else None
            begun = f"fitted from {name}" if restart % 2 else "fitted from nothing"
            found[begun] = universal(
                self.context.models(networks), self.own.x, self.own.y, eps=self.context.eps,
                steps=self.case.number("steps"), batch=BATCH, bounds=self.context.bounds,
                generator=self.context.source("universal", len(networks), restart),
                start=start, drawn=self.case.number("drawn"),
            )  # fmt: skip
        return self.chosen(networks, found)


THREAT = Threat(
    name="universal",
    title="Universal perturbation",
    question="Does one perturbation, fitted on past generations, fool later ones on any input?",
    ids=Identifiers(
        atlas="nearest: AML.T0043.002 Craft Adversarial Data: Black-Box Transfer",
        nist="nearest: NISTAML.022 Evasion (universal perturbation)",
        owasp="ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
    chains=CONTROLS,
)
