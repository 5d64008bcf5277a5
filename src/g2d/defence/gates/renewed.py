"""Gates of a vault that was refreshed: the former data's and the new data's accuracy, each alone.

Together the larger part could hide what the smaller one loses.
"""

from __future__ import annotations

from g2d.core.shares import largest_drop
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
    """Upper confidence bound of the drop on a part; where `accuracy_drop` cannot be shown on so few
    examples even if none differs, what was measured is held against it."""
    if not view.reference.added:
        return None
    settings = view.settings
    base, own = view.reference.base_correct[part], view.correct[part]
    worse, better, n = int((base & ~own).sum()), int((~base & own).sum()), len(base)
    limit, measured = settings.accuracy_drop, (worse - better) / max(1, n)
    shown = largest_drop(0, 0, n, settings.confidence) <= limit
    value = largest_drop(worse, better, n, settings.confidence) if shown else measured
    passed = value <= limit
    how = f"may be {value:.2%}" if shown else f"is {value:.2%}"
    reason = (
        ""
        if passed
        else f"{title}: {how} below the base's on {n} gate examples; {limit:.2%} is allowed"
    )
    return GateResult(name, passed, value, limit, reason, title=title, share=True, n=n)
