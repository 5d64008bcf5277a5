"""The gate on the watermark: every set of triggers is answered as the vault's key says."""

from __future__ import annotations

from g2d.defence.gates.view import CandidateView, GateResult


def watermark_gate(view: CandidateView) -> GateResult | None:
    """The least share of a set's triggers that the candidate hits, the reserve's among them.

    Nothing where the vault has no watermark. A generation that is served without it could not be
    claimed, and that cannot be made up for later.
    """
    mark = view.mark
    if mark is None:
        return None
    hits = mark.hits(view.model)
    shares, limit = mark.shares(hits), mark.least
    least = min(shares)
    names = [*(f"set {place}" for place in range(1, mark.sets)), "the reserve"]
    short = [
        f"{name} answers {count} of {size} triggers as its key says"
        for name, count, size, share in zip(names, hits, mark.sizes, shares, strict=True)
        if share < limit
    ]
    reason = f"{'; '.join(short)}; at least {limit:.0%} of each are required" if short else ""
    return GateResult(
        "watermark", not short, least, limit, reason,
        title="watermark hits", share=True, n=mark.sizes[shares.index(least)],
    )  # fmt: skip
