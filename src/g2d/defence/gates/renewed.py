"""Gates of a vault that was refreshed: the former data's and the new data's accuracy, each alone.

Together the larger part could hide what the smaller one loses.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from g2d.core.shares import largest_drop, shown_drop
from g2d.defence.gates.view import CandidateView, GateResult


def former_data_gate(view: CandidateView) -> GateResult | None:
    """The paired accuracy drop against the base on what the task had before any refresh."""
    old = len(view.reference.split) - view.reference.added
    return _part(view, slice(0, old), "former_data", "accuracy, former data")


def new_data_gate(view: CandidateView) -> GateResult | None:
    """The same on what refreshes have added."""
    old = len(view.reference.split) - view.reference.added
    return _part(view, slice(old, None), "new_data", "accuracy, new data")


def _part(view: CandidateView, part: slice, name: str, title: str) -> GateResult | None:
    """Upper confidence bound of the paired drop on a part, as of the accuracy gate.

    The reference is the refreshed base's own accuracy on that part. A part has fewer examples than
    the whole, which the accuracy gate holds to `accuracy_drop`: what the bound is wider for that
    reason alone is allowed on top. Where networks differ on 4 % of them either way, as good ones
    on NSL-KDD's shift do on 2 to 4 %, 2,200 examples leave 0.7 points open by themselves.
    Where `accuracy_drop` cannot be shown even if none differs, the bound is held against what they
    could show at best (`shown_drop`). The reason says either.
    """
    if not view.reference.added:
        return None
    settings, whole = view.settings, len(view.reference.base_correct)
    base, own = view.reference.base_correct[part], view.correct[part]
    worse, better, n = int((base & ~own).sum()), int((~base & own).sum()), len(base)
    bound = largest_drop(worse, better, n, settings.confidence)
    wider = wider_by(worse, better, n, whole, settings.confidence)
    shown = shown_drop(n, settings.accuracy_drop, settings.confidence)
    limit = max(shown, settings.accuracy_drop + wider)
    few = f"; {n} show none below that" if limit > settings.accuracy_drop else ""
    if limit > shown:
        few = f", {wider:.2%} of it because {n} examples leave more open than all {whole}"
    passed = bound <= limit
    reason = (
        ""
        if passed
        else f"{title}: may be {bound:.2%} below the base's ({settings.confidence:.0%} bound; "
        f"measured {(worse - better) / max(1, n):.2%} on {n} gate examples); {limit:.2%} is "
        f"allowed{few}"
    )
    return GateResult(name, passed, bound, limit, reason, title=title, share=True, n=n)


def wider_by(worse: int, better: int, n: int, whole: int, confidence: float) -> float:
    """By how much more `n` pairs leave open than `whole` would of which as large a share differs.

    Of pairs that differ both ways alike, so that a drop itself earns nothing; 0 of none.
    """
    if not n:
        return 0.0
    both = math.sqrt(2 * min(worse, better) / n)
    return NormalDist().inv_cdf(confidence) * both * (1 / math.sqrt(n) - 1 / math.sqrt(whole))
