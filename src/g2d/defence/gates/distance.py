"""The gate on parameters: far enough from every exposed generation, hidden units aligned."""

from __future__ import annotations

import torch

from g2d.defence.gates.view import CandidateView, GateResult
from g2d.weights.symmetry import aligned_distances


def distance_gate(view: CandidateView) -> GateResult:
    """Aligned relative L1 distance to the nearest exposed generation, over what is in scope.

    What lies outside is the same in all: counted, it would only make every distance look small.
    """
    limit = view.settings.distance
    if not all(bool(torch.isfinite(tensor).all()) for tensor in view.moving.values()):
        reason = "the distance of parameters that are not finite cannot be measured"
        return GateResult("distance", False, 0.0, limit, reason)
    found = aligned_distances(view.exposed_states.values(), view.state, view.chain, view.moving)
    distances = dict(zip(view.exposed_states, found, strict=True))
    if not distances:
        return GateResult("distance", True, 0.0, limit)
    number, least = min(distances.items(), key=lambda item: item[1])
    passed = least >= limit
    reason = (
        ""
        if passed
        else f"aligned distance {least:.4f} to exposed generation {number}; at least "
        f"{limit:.4f} is required"
    )
    return GateResult("distance", passed, least, limit, reason)
