"""Gates of a vault that was refreshed: the former data's and the new data's accuracy, each alone.

Together the larger part could hide what the smaller one loses.
"""

from __future__ import annotations

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

    Where `accuracy_drop` cannot be shown on so few examples even if none differs, the bound is
    held against what they could show at best (`shown_drop`); the reason says so.
    """
    if not view.reference.added:
        return None
    settings = view.settings
    base, own = view.reference.base_correct[part], view.correct[part]
    worse, better, n = int((base & ~own).sum()), int((~base & own).sum()), len(base)
    limit = shown_drop(n, settings.accuracy_drop, settings.confidence)
    bound = largest_drop(worse, better, n, settings.confidence)
    passed = bound <= limit
    few = f"; {n} show none below that" if limit > settings.accuracy_drop else ""
    reason = (
        ""
        if passed
        else f"{title}: may be {bound:.2%} below the base's ({settings.confidence:.0%} bound; "
        f"measured {(worse - better) / max(1, n):.2%} on {n} gate examples); {limit:.2%} is "
        f"allowed{few}"
    )
    return GateResult(name, passed, bound, limit, reason, title=title, share=True, n=n)
