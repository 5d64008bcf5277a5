"""Sanity: is the attack suite itself to be trusted? Checks that are printed with every evaluation.

Checks of Athalye et al. 2018 (arXiv 1802.00420) and Carlini et al. 2019 (arXiv 1902.06705), planted
masking that must be found, and the unit test of attacks of Zimmermann et al. 2022 (2206.13991).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from g2d.attacks import apgd, box, pgd, project, square
from g2d.core.types import Logits
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.rows import Identifiers, Row, not_measured
from g2d.redteam.scoring import Rate, share
from g2d.redteam.threat import Threat
from g2d.redteam.threats.whitebox import budgets, point, starts, strongest
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split

TARGETS = ("generated", "frozen")
SURE = 0.99  # ASR that unbounded noise must reach
STRONG = 0.9  # share of planted adversarial examples that a sound attack finds
LEVELS = 8  # of the planted quantiser
# Kinds of what is planted, and of the weak attacks of the unit test.
_PLANTS = {"quantised input": "quantised", "noisy forward pass": "noisy"}
_UNIT = {"one tiny step": "tiny-step", "gradients of a quantised network": "dead-gradients"}
INNER = 200  # points inside the ball for each readout of the unit test


def plan(spec: RunSpec) -> list[Case]:
    """Every check on the live network, and all but the planted masking on the frozen one."""
    n, steps, queries = (40, 20, 200) if spec.quick else (200, 100, 1000)
    options = (("n", n), ("steps", steps), ("queries", queries))
    costs = {"grows": 8.0, "boxes": 8.0, "steps": 4.0, "unit": 3.0}
    cases = [
        Case("sanity", name, chain, options, tuple({chain, "generated"} & set(spec.chains)),
             cost=cost)
        for chain in TARGETS
        if chain in spec.chains
        for name, cost in costs.items()
    ]  # fmt: skip
    if "generated" in spec.chains:
        cases.append(Case("sanity", "masking", "generated", options, ("generated",), cost=14.0))
    return cases


def run(case: Case, context: AttackContext) -> list[Row]:
    """Run one check."""
    checks = {"grows": _grows, "boxes": _boxes, "steps": _steps, "masking": _masking, "unit": _unit}
    return checks[case.name](case, context)


def _live(case: Case, context: AttackContext) -> nn.Module:
    return context.model(context.chain(case.chain).networks[-1])


def _row(
    case: Case,
    context: AttackContext,
    kind: str,
    threat: str,
    attack: str,
    value: Rate,
    passed: bool,
    rule: str,
    words: str,
    found: Mapping[str, Any],
    **more: object,
) -> Row:
    verdict = "passed" if passed else "FAILED"
    return context.row(
        case, f"check-{kind}", f"check: {threat}", attack, value, metric="check",
        note=f"{verdict}: {words}",
        extra={"passed": passed, "rule": rule, "found": dict(found), **more},
    )  # fmt: skip


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} %"


# --- (a) ASR grows with the budget ---


def _grows(case: Case, context: AttackContext) -> list[Row]:
    split, steps = context.examples(case.number("n")), case.number("steps")
    model, curve = _live(case, context), []
    levels = [eps for eps in budgets(context.eps, context.bounds) if eps >= context.eps]
    for eps in sorted({*levels[::2], levels[-1]}):
        found = strongest(
            model, split.x, split.y, context, eps=eps, steps=steps, name=("grows", eps)
        )
        curve.append((eps, context.score(model, found, split, eps)))
    falls = [eps for (_, a), (eps, b) in itertools.pairwise(curve) if b.value < a.low]
    eps, last = curve[-1]
    passed = last.value >= SURE and not falls
    words = f"{_percent(last)} at eps {eps:g}" + (f"; ASR falls at eps {falls}" if falls else "")
    return [
        _row(
            case, context, "grows", "ASR grows with eps to 100 %", f"APGD-CE {steps} steps", last,
            passed,
            f"at least {SURE:.0%} at the largest eps, and no fall beyond the interval", words,
            {"largest_eps": eps, "asr": last.value}, curve=[point(e, rate) for e, rate in curve],
        )
    ]  # fmt: skip


# --- (b) white-box beats black-box ---


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
    proposals["black_box"] = [
        square(
            model, x, y, eps=eps, queries=queries, seed=context.seed("square", name),
            bounds=box(x, eps, bounds),
        )
    ]  # fmt: skip
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


def _reasons(model: Logits, rates: Mapping[str, Rate], split: Split) -> list[str]:
    """Signs that gradients are masked rather than useless to an attacker."""
    reasons = []
    if not torch.equal(predict(model, split.x), predict(model, split.x)):
        reasons.append("one input gives two answers")
    if rates["black_box"].low > rates["white_box"].value:
        black, white = _percent(rates["black_box"]), _percent(rates["white_box"])
        reasons.append(f"black-box ({black}) beats white-box ({white})")
    if "largest" in rates and rates["largest"].value < SURE:
        reasons.append(f"only {_percent(rates['largest'])} at the largest eps")
    return reasons


def _boxes(case: Case, context: AttackContext) -> list[Row]:
    split, model = context.examples(case.number("n")), _live(case, context)
    chain = context.spec.chains.get("generated")
    exposed = chain.networks[:-1][-5:] if chain is not None else ()
    rates, found = _compare(model, context.models(exposed), case, context, "boxes")
    reasons = _reasons(model, rates, split)
    words = (
        f"white-box {_percent(rates['white_box'])}, black-box {_percent(rates['black_box'])}, "
        f"either {_percent(rates['union'])}; {found['only_black_box']} of {found['n']} images fall "
        "to black-box alone"
    )
    if reasons:
        words = f"GRADIENTS ARE MASKED, do not believe this network's ASR: {reasons}; {words}"
    attack = f"APGD-CE {case.number('steps')} steps against Square and transfer"
    rule = "the black-box ASR's lower bound does not exceed the white-box ASR"
    return [
        _row(
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


# --- (c) more steps are not weaker ---


def _steps(case: Case, context: AttackContext) -> list[Row]:
    split, model, most = (
        context.examples(case.number("n")),
        _live(case, context),
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
    words = ", ".join(f"{name} {_percent(rate)}" for name, rate in found.items())
    return [
        _row(case, context, "steps", "more steps are not weaker", "PGD and APGD",
             list(found.values())[-1], passed,
             "more steps reach the lower bound of fewer steps", words,
             {name: rate.value for name, rate in found.items()})
    ]  # fmt: skip


# --- (d) planted masking is found ---


def _quantiser(context: AttackContext) -> Callable[[Tensor], Tensor]:
    """Round inputs: to a few levels of the range, or to multiples of eps / 2 where there is none.

    Rounding has no gradient, so every gradient through it is zero.
    """
    low, high = context.bounds or (0.0, (LEVELS - 1) * context.eps / 2)
    step = (high - low) / (LEVELS - 1)
    return lambda x: low + ((x - low) / step).round() * step


def _plants(model: Logits, context: AttackContext) -> dict[str, Logits]:
    """Two defences that are none: a rounded input, and noise of one eps on every forward pass."""
    quantise, source = _quantiser(context), context.source("planted noise")

    def noisy(x: Tensor) -> Tensor:
        return model(x + context.eps * torch.randn(x.shape, generator=source, dtype=x.dtype))

    return {"quantised input": lambda x: model(quantise(x)), "noisy forward pass": noisy}


def _masking(case: Case, context: AttackContext) -> list[Row]:
    split, live, rows = context.examples(case.number("n")), _live(case, context), []
    steps, largest = case.number("steps"), budgets(context.eps, context.bounds)[-1]
    for name, planted in _plants(live, context).items():
        rates, found = _compare(planted, [live], case, context, name)
        far = strongest(
            planted, split.x, split.y, context, eps=largest, steps=steps, name=("far", name)
        )
        rates["largest"] = context.score(planted, far, split, largest)
        reasons = _reasons(planted, rates, split)
        words = f"the plant is found: {'; '.join(reasons)}" if reasons else "the plant goes unseen"
        rows.append(
            _row(case, context, _PLANTS[name], f"planted {name} is found",
                 f"APGD-CE {steps} steps", rates["white_box"], bool(reasons),
                 "at least one sign of masking", words,
                 {**found, "largest": rates["largest"].value, "reasons": reasons})
        )  # fmt: skip
    return rows


# --- (e) a planted weak attack is found: the unit test of attacks ---


def _last_linear(model: nn.Module) -> nn.Linear | None:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else None


def _features(model: nn.Module, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Return the map from inputs to what the last linear layer reads, (n, features)."""

    def features(x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        try:
            model(x)
        finally:
            hook.remove()
        return kept[-1].flatten(1)

    return features


def _readouts(
    features: Callable[[Tensor], Tensor], x: Tensor, context: AttackContext
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit one linear readout an example that tells a corner of the ball from its inside.

    Fisher's discriminant between `INNER` uniform points (and x) and one corner; the threshold lies
    at nine tenths of the gap between the highest inside score and the corner's, so the corner is an
    adversarial example by construction and a random point hardly ever is.

    Returns:
        weights (n, features), offsets (n,), and which examples can be told apart, (n,) bool.
    """
    source = context.source("readouts")
    signs = (torch.rand(x.shape, generator=source, dtype=x.dtype) - 0.5).sign()
    corner = project(x + context.eps * signs, x, context.eps, context.bounds)
    draws = torch.rand((INNER, *x.shape), generator=source, dtype=x.dtype)
    inside = [
        project(x + 0.95 * context.eps * (2 * u - 1), x, context.eps, context.bounds) for u in draws
    ]
    with torch.no_grad():
        inner = torch.stack([features(p) for p in [x, *inside]], 1).double()
        far = features(corner).double()
    mean = inner.mean(1)
    centred = inner - mean[:, None]
    covariance = centred.mT @ centred / inner.shape[1]
    ridge = 1e-3 * covariance.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
    covariance += ridge[:, None, None] * torch.eye(inner.shape[2], dtype=torch.float64)
    weights = torch.linalg.solve(covariance, (far - mean)[..., None])[..., 0]
    scores, score = (inner * weights[:, None]).sum(2), (far * weights).sum(1)
    highest = scores.max(1).values
    threshold = highest + 0.9 * (score - highest)
    scale = (threshold - scores.mean(1)).clamp_min(1e-12)  # the middle of the ball scores -1
    valid = score > highest + 1e-6 * (score - scores.mean(1)).abs()
    return (weights / scale[:, None]).to(x.dtype), (-threshold / scale).to(x.dtype), valid


def _unit(case: Case, context: AttackContext) -> list[Row]:
    model = _live(case, context)
    layer = _last_linear(model)
    if layer is None:
        why = "the model has no linear layer whose input could be read"
        return [
            not_measured(
                "sanity", "check-unit", "check: unit test of attacks", case.chain, "APGD", why
            )
        ]
    x, features = context.examples(case.number("n")).x, _features(model, layer)
    weights, offsets, valid = _readouts(features, x, context)
    x, weights, offsets = x[valid], weights[valid], offsets[valid]
    split = Split(x, torch.zeros(len(x), dtype=torch.long))

    def binary(u: Tensor) -> Tensor:
        score = (features(u) * weights).sum(1) + offsets
        return torch.stack([-score, score], 1)

    found = {
        name: context.score(binary, proposed, split)
        for name, proposed in _candidates(binary, split, case, context).items()
    }
    return [_verdict(case, context, name, found, int(valid.sum())) for name in list(found)[:3]]


def _candidates(
    binary: Logits, split: Split, case: Case, context: AttackContext
) -> dict[str, Tensor]:
    """The suite's attack, two weak ones, and a random corner; all on the same readouts."""
    x, y, eps, bounds, steps = split.x, split.y, context.eps, context.bounds, case.number("steps")
    quantise = _quantiser(context)

    def hidden(u: Tensor) -> Tensor:
        return binary(quantise(u))

    tiny = pgd(
        binary, x, y, eps=eps, steps=1, step_size=eps / 20, generator=context.source("tiny"),
        bounds=bounds, batch=max(1, len(x)),
    )  # fmt: skip
    signs = (torch.rand(x.shape, generator=context.source("corner"), dtype=x.dtype) - 0.5).sign()
    return {
        f"APGD-CE {steps} steps": _whole(binary, split, steps, context),
        "one tiny step": tiny,
        "gradients of a quantised network": _whole(hidden, split, steps, context),
        "a random corner": x + eps * signs,
    }


def _whole(model: Logits, split: Split, steps: int, context: AttackContext) -> Tensor:
    """As `strongest`, on all examples at once: every example has a readout of its own."""
    x, y, batch = split.x, split.y, max(1, len(split))
    return apgd(
        model, x, y, eps=context.eps, steps=steps, seed=context.seed("unit"),
        bounds=box(x, context.eps, context.bounds), keep="flip", restarts=starts(x), batch=batch,
    )  # fmt: skip


def _verdict(
    case: Case, context: AttackContext, name: str, found: Mapping[str, Rate], n: int
) -> Row:
    strong, rate = name == next(iter(found)), found[name]
    passed = (rate.value >= STRONG) == strong
    side = "at least" if strong else "below"
    words = (
        f"finds {_percent(rate)} of {n} planted adversarial examples "
        f"(a random corner {_percent(found['a random corner'])})"
    )
    threat = "the suite's attack passes the unit test" if strong else f"planted {name} is found"
    return _row(
        case,
        context,
        _UNIT.get(name, "unit"),
        threat,
        name,
        rate,
        passed,
        f"{side} {STRONG:.0%} of planted examples",
        words,
        {other: value.value for other, value in found.items()},
    )


THREAT = Threat(
    name="sanity",
    title="Sanity of the attacks",
    question=(
        "Would this suite notice if a defence only hid its gradients, or if an attack were weak?"
    ),
    ids=Identifiers(
        atlas="nearest: AML.T0042 Verify Attack",
        nist="nearest: NISTAML.022 Evasion",
        owasp="nearest: ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
)
