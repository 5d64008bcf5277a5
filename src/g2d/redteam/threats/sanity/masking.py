"""Checks that gradients are not masked, and that planted masking is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from g2d.attacks import box, pgd, project, square
from g2d.attacks.query import clock_square
from g2d.attacks.tables import is_region
from g2d.core.types import Logits
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.rows import Row
from g2d.redteam.scoring import Rate, share
from g2d.redteam.threats.sanity.strength import SURE
from g2d.redteam.threats.sanity.verdict import check_row, live_model, percent
from g2d.redteam.threats.whitebox import budgets, strongest
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split

LEVELS = 8  # of the planted quantiser
# Kinds of what is planted, and of the weak attacks of the unit test.
_PLANTS = {"quantised input": "quantised", "noisy forward pass": "noisy"}


def _flipped(model: Logits, proposed: Tensor, split: Split, context: AttackContext) -> Tensor:
    """Which examples are classified correctly, but not as they are proposed, (n,) bool."""
    inside = project(proposed, split.x, context.eps, context.bounds)
    correct = predict(model, split.x).argmax(1) == split.y
    return correct & (predict(model, inside).argmax(1) != split.y)


def _compare(
    model: Logits, surrogates: Sequence[Logits], case: Case, context: AttackContext, name: str
) -> tuple[dict[str, Rate], dict[str, Any]]:
    """Attack by gradients, from other networks and by queries: rates, and counts image by image."""
    split, steps, queries = (
        context.examples(case.number("n")), case.number("steps"), case.number("queries")
    )  # fmt: skip
    x, y, eps, bounds = split.x, split.y, context.eps, context.bounds
    proposals = {"white_box": [strongest(model, x, y, context, eps=eps, steps=steps, name=name)]}
    proposals["black_box"] = [_searched(model, split, queries, context, name)]
    if surrogates:
        source = context.source("transfer", name)
        proposals["black_box"].append(
            pgd(surrogates, x, y, eps=eps, steps=20, generator=source, bounds=bounds)
        )
    flips = {
        kind: torch.stack([_flipped(model, p, split, context) for p in found]).any(0)
        for kind, found in proposals.items()
    }
    correct = int((predict(model, x).argmax(1) == y).sum())
    flips["union"] = flips["white_box"] | flips["black_box"]
    # A network that draws at random may have more flips than correct answers in another draw.
    rates = {kind: share(min(int(found.sum()), correct), correct) for kind, found in flips.items()}
    counts = {"only_black_box": int((flips["black_box"] & ~flips["white_box"]).sum()), "n": correct}
    return rates, {kind: rate.value for kind, rate in rates.items()} | counts


def _searched(
    model: Logits, split: Split, queries: int, context: AttackContext, name: str
) -> Tensor:
    """Propose by queries: AutoAttack's Square, or ours where a table's budget rules that out."""
    x, y, eps, seed = split.x, split.y, context.eps, context.seed("square", name)
    if is_region(context.bounds):
        return clock_square(
            lambda asked, _: predict(model, asked), x, y, eps=eps, budget=queries,
            generator=torch.Generator().manual_seed(seed), bounds=context.bounds,
        )  # fmt: skip
    bounds = box(x, eps, context.bounds)
    return square(model, x, y, eps=eps, queries=queries, seed=seed, bounds=bounds)


def _reasons(model: Logits, rates: Mapping[str, Rate], split: Split) -> list[str]:
    """Signs that gradients are masked rather than useless to an attacker."""
    reasons = []
    if not torch.equal(predict(model, split.x), predict(model, split.x)):
        reasons.append("one input gives two answers")
    if rates["black_box"].low > rates["white_box"].value:
        black, white = percent(rates["black_box"]), percent(rates["white_box"])
        reasons.append(f"black-box ({black}) beats white-box ({white})")
    if "largest" in rates and rates["largest"].value < SURE:
        reasons.append(f"only {percent(rates['largest'])} at the largest eps")
    return reasons


def boxes(case: Case, context: AttackContext) -> list[Row]:
    """White-box beats black-box."""
    split, model = context.examples(case.number("n")), live_model(case, context)
    chain = context.spec.chains.get("generated")
    exposed = chain.networks[:-1][-5:] if chain is not None else ()
    rates, found = _compare(model, context.models(exposed), case, context, "boxes")
    reasons = _reasons(model, rates, split)
    words = (
        f"white-box {percent(rates['white_box'])}, black-box {percent(rates['black_box'])}, "
        f"either {percent(rates['union'])}; {found['only_black_box']} of {found['n']} images fall "
        "to black-box alone"
    )
    if reasons:
        words = f"GRADIENTS ARE MASKED, do not believe this network's ASR: {reasons}; {words}"
    attack = f"APGD-CE {case.number('steps')} steps against Square and transfer"
    rule = "the black-box ASR's lower bound does not exceed the white-box ASR"
    return [
        check_row(
            case,
            context,
            "boxes",
            "white-box beats black-box",
            attack,
            rates["white_box"],
            not reasons,
            rule,
            words,
            found,
            queries=case.number("queries"),
            surrogates=len(exposed),
        )
    ]


def quantiser(context: AttackContext) -> Callable[[Tensor], Tensor]:
    """Round inputs: to a few levels of the range, or to multiples of eps / 2 where there is none.

    Rounding has no gradient, so every gradient through it is zero.
    """
    bounds = context.bounds
    if is_region(bounds):
        return lambda x: _rounded(x, bounds.radius(context.eps, x) / 2)
    low, high = bounds or (0.0, (LEVELS - 1) * context.eps / 2)
    step = (high - low) / (LEVELS - 1)
    return lambda x: low + ((x - low) / step).round() * step


def _rounded(x: Tensor, step: Tensor) -> Tensor:
    """Round to multiples of each feature's step; what has none stays."""
    return torch.where(step > 0, (x / step.clamp_min(1e-30)).round() * step, x)


def _plants(model: Logits, context: AttackContext) -> dict[str, Logits]:
    """Two defences that are none: a rounded input, and noise of one eps on every forward pass."""
    quantise, source = quantiser(context), context.source("planted noise")

    def noisy(x: Tensor) -> Tensor:
        bounds = context.bounds
        size = bounds.radius(context.eps, x) if is_region(bounds) else context.eps
        return model(x + size * torch.randn(x.shape, generator=source, dtype=x.dtype))

    return {"quantised input": lambda x: model(quantise(x)), "noisy forward pass": noisy}


def _falls(live: Logits, split: Split, steps: int, largest: float, context: AttackContext) -> bool:
    """Whether the network itself falls at the largest budget: in a ball that holds all data, yes.

    What a table's budget keeps from the attacker may hold, however large the rest grows.
    """
    if not is_region(context.bounds):
        return True
    found = strongest(live, split.x, split.y, context, eps=largest, steps=steps, name="falls")
    return context.score(live, found, split, largest).value >= SURE


def masking(case: Case, context: AttackContext) -> list[Row]:
    """Masking that is planted on the live network is found."""
    split, live, rows = context.examples(case.number("n")), live_model(case, context), []
    steps, largest = case.number("steps"), budgets(context.eps, context.bounds)[-1]
    falls = _falls(live, split, steps, largest, context)
    for name, planted in _plants(live, context).items():
        rates, found = _compare(planted, [live], case, context, name)
        far = strongest(
            planted, split.x, split.y, context, eps=largest, steps=steps, name=("far", name)
        )
        far_rate = context.score(planted, far, split, largest)
        if falls:
            rates["largest"] = far_rate
        reasons = _reasons(planted, rates, split)
        words = f"the plant is found: {'; '.join(reasons)}" if reasons else "the plant goes unseen"
        rows.append(
            check_row(case, context, _PLANTS[name], f"planted {name} is found",
                 f"APGD-CE {steps} steps", rates["white_box"], bool(reasons),
                 "at least one sign of masking", words,
                 {**found, "largest": far_rate.value, "reasons": reasons})
        )  # fmt: skip
    return rows
