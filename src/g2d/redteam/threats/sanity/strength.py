"""Checks that an attack wins more with a larger budget, and no less with more steps."""

from __future__ import annotations

import itertools

from g2d.attacks import pgd
from g2d.attacks.tables import is_region
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.rows import Row
from g2d.redteam.scoring import Rate
from g2d.redteam.threats.sanity.verdict import check_row, live_model, percent
from g2d.redteam.threats.whitebox import budgets, point, strongest

SURE = 0.99  # ASR that unbounded noise must reach


def grows(case: Case, context: AttackContext) -> list[Row]:
    """ASR grows with the budget, up to every example."""
    split, steps = context.examples(case.number("n")), case.number("steps")
    model, curve = live_model(case, context), []
    levels = [eps for eps in budgets(context.eps, context.bounds) if eps >= context.eps]
    for eps in sorted({*levels[::2], levels[-1]}):
        found = strongest(
            model, split.x, split.y, context, eps=eps, steps=steps, name=("grows", eps)
        )
        curve.append((eps, context.score(model, found, split, eps)))
    falls = [eps for (_, a), (eps, b) in itertools.pairwise(curve) if b.value < a.low]
    eps, last = curve[-1]
    # What a budget keeps from the attacker may hold a class by itself, however large it grows.
    whole = not is_region(context.bounds)
    passed = (last.value >= SURE or not whole) and not falls
    end = f"at least {SURE:.0%} at the largest eps, and no" if whole else "no"
    words = f"{percent(last)} at eps {eps:g}" + (f"; ASR falls at eps {falls}" if falls else "")
    return [
        check_row(
            case, context, "grows", "ASR grows with eps" + " to 100 %" * whole,
            f"APGD-CE {steps} steps", last, passed, f"{end} fall beyond the interval", words,
            {"largest_eps": eps, "asr": last.value}, curve=[point(e, rate) for e, rate in curve],
        )
    ]  # fmt: skip


def more_steps(case: Case, context: AttackContext) -> list[Row]:
    """More steps of one attack are not weaker."""
    split, model, most = (
        context.examples(case.number("n")),
        live_model(case, context),
        case.number("steps"),
    )
    found: dict[str, Rate] = {}
    ladders: list[list[Rate]] = [[], []]
    for steps in (5, 20, 100):
        source = context.source("steps")
        proposed = pgd(
            model,
            split.x,
            split.y,
            eps=context.eps,
            steps=steps,
            generator=source,
            bounds=context.bounds,
        )
        found[f"PGD-{steps}"] = context.score(model, proposed, split)
        ladders[0].append(found[f"PGD-{steps}"])
    for steps in (20, max(40, most)):
        proposed = strongest(
            model, split.x, split.y, context, eps=context.eps, steps=steps, name="steps"
        )
        found[f"APGD-{steps}"] = context.score(model, proposed, split)
        ladders[1].append(found[f"APGD-{steps}"])
    passed = all(
        more.value >= fewer.low for ladder in ladders for fewer, more in itertools.pairwise(ladder)
    )
    words = ", ".join(f"{name} {percent(rate)}" for name, rate in found.items())
    return [
        check_row(case, context, "steps", "more steps are not weaker", "PGD and APGD",
             list(found.values())[-1], passed,
             "more steps reach the lower bound of fewer steps", words,
             {name: rate.value for name, rate in found.items()})
    ]  # fmt: skip
