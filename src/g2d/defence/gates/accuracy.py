"""Gates on what a candidate answers to clean data: finite, as accurate as the base, fair."""

from __future__ import annotations

import torch

from g2d.core.shares import largest_drop, least_examples
from g2d.defence.gates.view import CandidateView, GateResult
from g2d.settings import GateSettings


def finite_gate(view: CandidateView) -> GateResult:
    """Every parameter in scope and every logit on the gate split is finite."""
    bad = sum(int((~torch.isfinite(t)).sum()) for t in view.moving.values())
    bad += int((~torch.isfinite(view.logits)).sum())
    reason = f"{bad} parameters or logits are NaN or infinite" if bad else ""
    return GateResult("finite", bad == 0, float(bad), 0.0, reason)


def accuracy_gate(view: CandidateView) -> GateResult:
    """Upper confidence bound of the paired accuracy drop against the base (one-sided)."""
    settings, base = view.settings, view.reference.base_correct
    worse, better = int((base & ~view.correct).sum()), int((~base & view.correct).sum())
    n, limit = len(base), settings.accuracy_drop
    bound = largest_drop(worse, better, n, settings.confidence)
    passed = bound <= limit
    reason = (
        ""
        if passed
        else f"accuracy may be {bound:.2%} below the base's ({settings.confidence:.0%} bound; "
        f"measured {(worse - better) / n:.2%} on {n} gate examples); {limit:.2%} is allowed"
        f"{too_few(n, settings)}"
    )
    return GateResult("accuracy", passed, bound, limit, reason, n=n)


def too_few(n: int, settings: GateSettings) -> str:
    """Say that `n` gate examples show no drop as small as is allowed; "" where they could."""
    least = least_examples(settings.accuracy_drop, settings.confidence)
    if least is not None and n >= least:
        return ""
    return (
        f", which {n} gate examples cannot show even where none differs (bound "
        f"{largest_drop(0, 0, n, settings.confidence):.2%}): "
        + (f"give {least} or more, or " if least else "no number of them can; ")
        + "raise accuracy_drop in [gates]"
    )


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
