"""The unit test of attacks: planted adversarial examples that a sound attack must find."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from g2d.attacks import apgd, box, pgd, project
from g2d.attacks.tables import is_region
from g2d.core.types import Logits
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import Rate
from g2d.redteam.threats.sanity.masking import quantiser
from g2d.redteam.threats.sanity.verdict import check_row, live_model, percent
from g2d.redteam.threats.whitebox import starts
from g2d.tasks.splits import Split

STRONG = 0.9  # share of planted adversarial examples that a sound attack finds
_UNIT = {"one tiny step": "tiny-step", "gradients of a quantised network": "dead-gradients"}
INNER = 200  # points inside the ball for each readout of the unit test


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


def unit_test(case: Case, context: AttackContext) -> list[Row]:
    """Planted examples are found by the suite's attack and missed by two weak ones."""
    model = live_model(case, context)
    layer = _last_linear(model)
    if layer is None or is_region(context.bounds):
        why = "the model has no linear layer whose input could be read"
        if is_region(context.bounds):
            why = "examples are planted in a ball, and a table's budget is none"
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
    quantise = quantiser(context)

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
        f"finds {percent(rate)} of {n} planted adversarial examples "
        f"(a random corner {percent(found['a random corner'])})"
    )
    threat = "the suite's attack passes the unit test" if strong else f"planted {name} is found"
    return check_row(
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
