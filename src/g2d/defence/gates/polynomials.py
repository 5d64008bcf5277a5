"""The gate on polynomial activations: none is given numbers far beyond those of the base."""

from __future__ import annotations

from g2d.core.polynomial import largest_inputs
from g2d.defence.gates.view import CandidateView, GateResult


def pre_activation_gate(view: CandidateView) -> GateResult | None:
    """The largest pre-activation of a polynomial layer on the gate split, against the base's there.

    Layer by layer; value and limit are those of the layer that comes nearest to its limit, or goes
    furthest beyond it. Nothing where no layer is a polynomial, which are not run for it.

    Outside of the range that it was trained on ReLU grows as its argument does, a chain of three
    squares with the eighth power: answers there mean nothing, and under encryption numbers of that
    size wrap around.
    """
    limits = {
        name: view.settings.pre_activation * largest
        for name, largest in view.reference.pre_activations.items()
    }
    if not limits or view.settings.pre_activation == 0:
        return None
    found = largest_inputs(view.model, view.reference.split.x)
    worst = max(limits, key=lambda name: found[name] / max(limits[name], 1e-30))
    over = [
        f"layer {name!r} squares values up to {found[name]:.4g}, and {limits[name]:.4g} are allowed"
        for name in limits
        if not found[name] <= limits[name]
    ]
    reason = (
        f"{'; '.join(over)} ({view.settings.pre_activation:g} times the base's largest): "
        "polynomials explode beyond what they were trained on"
    )
    return GateResult(
        "pre_activation", not over, found[worst], limits[worst], reason if over else "",
        title="largest pre-activation", n=len(view.reference.split),
    )  # fmt: skip
