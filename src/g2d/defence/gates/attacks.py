"""Gates on what a candidate answers to attacks: stale ones, and cheap ones on itself."""

from __future__ import annotations

import torch

from g2d.attacks import pgd
from g2d.core.types import Logits
from g2d.defence.gates.view import CandidateView, GateResult
from g2d.generator import Exposure
from g2d.tasks.inference import predict


def stale_gate(view: CandidateView) -> GateResult:
    """Stale ASR of every remembered exposure's gate-split attacks."""
    limit = view.settings.stale_asr
    rates = [stale_asr(view.model, exposure) for exposure in view.exposures]
    worst = max(rates, default=0.0)
    passed = worst <= limit
    over = [
        f"{rate:.1%} (generation {exposure.number})"
        for rate, exposure in zip(rates, view.exposures, strict=True)
        if rate > limit
    ]
    reason = "" if passed else f"stale ASR over {limit:.0%}: " + ", ".join(over)
    return GateResult("stale_asr", passed, worst, limit, reason)


def robust_gate(view: CandidateView) -> GateResult | None:
    """Accuracy under PGD on the candidate itself: cheap, so an upper bound on what attacks leave.

    Every candidate meets the same examples and random starts: one that barely failed is not saved
    by another draw.
    """
    model, reference, settings = view.model, view.reference, view.settings
    if settings.robust == 0:
        return None
    draws = torch.Generator().manual_seed(0)
    some = reference.split.sample(settings.pool, draws)
    attacked = pgd(
        model, some.x, some.y, eps=reference.eps, steps=settings.pool_steps, generator=draws,
        bounds=reference.bounds,
    )  # fmt: skip
    right = (predict(model, attacked).argmax(1) == some.y) & (
        predict(model, some.x).argmax(1) == some.y
    )
    value = float(right.double().mean())
    passed = value >= settings.robust
    reason = (
        ""
        if passed
        else f"accuracy under PGD-{settings.pool_steps} at eps {reference.eps:g} is {value:.1%} on "
        f"{len(some)} gate examples; at least {settings.robust:.1%} is required"
    )
    return GateResult("robust", passed, value, settings.robust, reason)


def stale_asr(model: Logits, exposure: Exposure) -> float:
    """Share of correctly classified gate inputs that the exposure's attacks flip."""
    clean = predict(model, exposure.gate_clean.x).argmax(1) == exposure.gate_clean.y
    attacked = predict(model, exposure.gate.x).argmax(1) == exposure.gate.y
    return float((clean & ~attacked).sum()) / max(1, int(clean.sum()))
