"""The gate on backdoors: no class is reached by a far smaller pattern than the others."""

from __future__ import annotations

from g2d.defence.backdoors import scan
from g2d.defence.gates.view import CandidateView, GateResult


def backdoor_gate(view: CandidateView) -> GateResult | None:
    """The smallest pattern that sends images to a class, by the median of all classes'.

    Off by default: it takes seconds a candidate, and it was tried on digits and four pixels alone.

    Raises:
        DataError: the data are no images in a known range.
    """
    least = view.settings.backdoor
    if least == 0:
        return None
    reference = view.reference
    bounds = reference.bounds if isinstance(reference.bounds, tuple) else None
    found = scan(view.model, reference.split, reference.classes, bounds)
    size = found.triggers[found.target].size
    reason = (
        f"a pattern of {size:.1f} pixels sends images to class {found.target}, {found.ratio:.2f} of"
        f" what the median class needs, and {least:g} is the least allowed: that looks like a"
        " backdoor"
    )
    passed = found.ratio >= least
    return GateResult(
        "backdoor", passed, found.ratio, least, "" if passed else reason,
        title="smallest trigger by the median", n=len(reference.split),
    )  # fmt: skip
