"""Gates: what a candidate must pass before it becomes a generation, all on the gate split.

A gate is a pure function that returns its measured value, its limit and, where it fails, a reason.
Every gate is always run: a rejected candidate gets every reason, not the first (STYLE, rule 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from g2d.core.imports import import_attribute, words
from g2d.defence.gates.accuracy import accuracy_gate, class_gate, finite_gate
from g2d.defence.gates.attacks import robust_gate, stale_asr, stale_gate
from g2d.defence.gates.distance import distance_gate
from g2d.defence.gates.view import CandidateView, Gate, GateResult, Reference
from g2d.errors import GenerationError, SettingsError

GATES: tuple[Gate, ...] = (
    finite_gate,
    accuracy_gate,
    class_gate,
    distance_gate,
    stale_gate,
    robust_gate,
)
"""Every gate, in the order of their results; a new one is a line here, or in `[gates] extra`."""


def run_gates(view: CandidateView) -> list[GateResult]:
    """Judge a candidate by every gate: those of `GATES`, then the user's own.

    Raises:
        SettingsError: a gate of the user's own cannot be imported.
        GenerationError: one of them failed to measure; the candidate is not let through.
    """
    own = dict(zip(view.settings.extra, find_gates(view.settings.extra), strict=True))
    results = [result for gate in GATES if (result := gate(view)) is not None]
    for name, gate in own.items():
        result = _measured(name, gate, view)
        if result is None:
            continue
        if any(result.gate == other.gate for other in results):
            raise SettingsError(f"gate {name!r} calls itself {result.gate!r}, as another one does")
        results.append(result)
    return results


def find_gates(names: Sequence[str]) -> list[Gate]:
    """The user's own gates, each named 'module:function' (or an object that can be called).

    Raises:
        SettingsError: there is no such module or function, or it cannot be called.
    """
    found: list[Gate] = []
    for name in names:
        gate = import_attribute(name, "gate", SettingsError)
        if not callable(gate):
            raise SettingsError(
                f"gate {name!r} is {type(gate).__name__}, not a function of a CandidateView"
            )
        found.append(gate)
    return found


def _measured(name: str, gate: Gate, view: CandidateView) -> GateResult | None:
    """A user's gate's result; whatever it does wrong must not let a candidate through."""
    try:
        result = gate(view)
    except Exception as error:
        raise GenerationError(f"gate {name!r} failed to measure: {words(error)}") from error
    if result is None:
        return None
    if not isinstance(result, GateResult):
        raise GenerationError(f"gate {name!r} returned {type(result).__name__}, not a GateResult")
    value, limit = float(result.value), float(result.limit)  # a tensor, say, is no JSON
    if result.passed and not math.isfinite(value + limit):
        raise GenerationError(f"gate {name!r} passed a candidate that measured {value} of {limit}")
    return replace(result, passed=bool(result.passed), value=value, limit=limit)


__all__ = [
    "GATES", "CandidateView", "Gate", "GateResult", "Reference", "accuracy_gate", "class_gate",
    "distance_gate", "find_gates", "finite_gate", "robust_gate", "run_gates", "stale_asr",
    "stale_gate",
]  # fmt: skip
