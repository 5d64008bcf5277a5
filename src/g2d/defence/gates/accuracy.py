"""Gates on what a candidate answers to clean data: finite, as accurate as the base, fair."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch

from g2d.defence.gates.view import CandidateView, GateResult


def finite_gate(view: CandidateView) -> GateResult:
    """Every parameter in scope and every logit on the gate split is finite."""
    bad = sum(int((~torch.isfinite(t)).sum()) for t in view.moving.values())
    bad += int((~torch.isfinite(view.logits)).sum())
    reason = f"{bad} parameters or logits are NaN or infinite" if bad else ""
    return GateResult("finite", bad == 0, float(bad), 0.0, reason)


def accuracy_gate(view: CandidateView) -> GateResult:
    """Upper confidence bound of the paired accuracy drop against the base (one-sided, normal)."""
    settings = view.settings
    drop = view.reference.base_correct.double() - view.correct.double()
    quantile = NormalDist().inv_cdf(settings.confidence)
    bound = float(drop.mean() + quantile * drop.std() / math.sqrt(len(drop)))
    passed = bound <= settings.accuracy_drop
    reason = (
        ""
        if passed
        else f"accuracy may be {bound:.2%} below the base's "
        f"({settings.confidence:.0%} bound; measured {float(drop.mean()):.2%}); "
        f"{settings.accuracy_drop:.2%} is allowed"
    )
    return GateResult("accuracy", passed, bound, settings.accuracy_drop, reason)


def class_gate(view: CandidateView) -> GateResult:
    """No class may fall far below its base accuracy (bias)."""
    reference, limit = view.reference, view.settings.class_drop
    worst, which = -1.0, 0
    for label in range(reference.classes):
        of = reference.split.y == label
        if not bool(of.any()):
            continue
        base, own = reference.base_correct[of].double(), view.correct[of].double()
        drop = float(base.mean() - own.mean())
        if drop > worst:
            worst, which = drop, label
    passed = worst <= limit
    reason = "" if passed else f"class {which} lost {worst:.2%}; {limit:.2%} allowed"
    return GateResult("class", passed, worst, limit, reason)
