"""How large numbers get in each layer of a generation, against what a plan keeps precise.

What is measured, and on which inputs, is another's business: a vault keeps it for the gate split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from g2d.protect.homomorphic.layers import Activation
from g2d.protect.homomorphic.matrices import State
from g2d.protect.homomorphic.plan import Plan

__all__ = ["Ranges", "ranges_of"]


@dataclass(frozen=True)
class Ranges:
    """Layers whose numbers are too large, with the largest number that is squared there.

    Attributes:
        bound: `Plan.bound`. over: beyond it, where answers lose precision in proportion. wrapping:
            from where they are noise (`Parameters.most`). unknown: layers of which nothing is
            known.
    """

    bound: float
    over: Mapping[str, float]
    wrapping: Mapping[str, float]
    unknown: tuple[str, ...]

    def told(self) -> str:
        """What is wrong with the numbers that are known, in one line; "": nothing."""
        found = {**self.over, **self.wrapping}
        parts = (f"layer {name!r} squares numbers of up to {x:.4g}" for name, x in found.items())
        return f"{'; '.join(parts)} (precise up to {self.bound:g})" if found else ""


def ranges_of(plan: Plan, state: State, largest: Mapping[str, Any]) -> Ranges:
    """Hold what was measured of a generation against a plan, layer by layer.

    What is squared for a·x² + b·x + c is √|a|·x + b / 2√|a| (`matrices.affines`).

    Args:
        state: its weights, which hold coefficients that were learned. largest: magnitude of x by
            the polynomial's name, as `pre_activations` and the vault's manifests have it.
    """
    over: dict[str, float] = {}
    wrapping: dict[str, float] = {}
    unknown: list[str] = []
    for step in plan.steps[:-1]:
        assert step.activation is not None
        name = step.activation.name
        given: Any = largest.get(name)
        if type(given) not in (int, float) or not 0 <= given < math.inf:
            unknown.append(name)
            continue
        squared = _squared(step.activation, state, float(given))
        if squared >= plan.parameters.most:
            wrapping[name] = squared
        elif squared > plan.bound:
            over[name] = squared
    return Ranges(plan.bound, over, wrapping, tuple(unknown))


def _squared(layer: Activation, state: State, largest: float) -> float:
    a, b, _ = layer.fixed or tuple(float(state[f"{layer.name}.{one}"]) for one in "abc")
    scale = math.sqrt(abs(a))
    return scale * largest + (abs(b) / (2 * scale) if b else 0.0)
