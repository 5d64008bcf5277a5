"""Gates: what a candidate must pass before it becomes a generation, all on the gate split.

A gate is a pure function that returns its measured value, its limit and, where it fails, a reason.
Every gate is always run: a rejected candidate gets every reason, not the first (STYLE, rule 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from g2d.core.imports import import_callables, words
from g2d.defence.gates.accuracy import accuracy_gate, class_gate, finite_gate
from g2d.defence.gates.attacks import robust_gate, stale_asr, stale_gate, stale_share_gate
from g2d.defence.gates.backdoor import backdoor_gate
from g2d.defence.gates.basin import basin_gate
from g2d.defence.gates.distance import distance_gate
from g2d.defence.gates.polynomials import pre_activation_gate
from g2d.defence.gates.renewed import former_data_gate, new_data_gate
from g2d.defence.gates.view import CandidateView, Gate, GateResult, Reference
from g2d.defence.gates.watermark import watermark_gate
from g2d.errors import GenerationError, SettingsError

GATES: tuple[Gate, ...] = (
    finite_gate,
    accuracy_gate,
    class_gate,
    distance_gate,
    stale_gate,
    robust_gate,
    stale_share_gate,
    basin_gate,
    watermark_gate,
    former_data_gate,
    new_data_gate,
    pre_activation_gate,
    backdoor_gate,
)
"""Every gate, in the order of their results; a new one is a line here, or in `[gates] extra`."""


def run_gates(view: CandidateView) -> list[GateResult]:
    """Judge a candidate by every gate: those of `GATES`, then the user's own.

    Raises:
        SettingsError: a gate of the user's own cannot be imported.
        GenerationError: one of them failed to measure a candidate that passes G2D's own gates.
            One that fails those is rejected all the same, and this is one more reason.
    """
    own = dict(zip(view.settings.extra, find_gates(view.settings.extra), strict=True))
    results = [result for gate in GATES if (result := gate(view)) is not None]
    lost = any(not result.passed for result in results)
    for name, gate in own.items():
        try:
            result = _measured(name, gate, view)
        except GenerationError as error:
            if not lost:
                raise
            # Nobody promised this gate a candidate that is not finite, say: that one is rejected,
            # with every reason, and the next one is tried.
            result = GateResult(name, False, 0.0, 0.0, str(error))
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
    return import_callables(names, "gate", "a function of a CandidateView")


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
    try:
        passed = bool(result.passed)  # a tensor, say, is no JSON
        value, limit = float(result.value), float(result.limit)
    except Exception as error:
        raise GenerationError(
            f"gate {name!r} gave passed={result.passed!r}, value={result.value!r}, "
            f"limit={result.limit!r}; expected a bool and two numbers ({words(error)})"
        ) from error
    if passed and not math.isfinite(value + limit):
        raise GenerationError(f"gate {name!r} passed a candidate that measured {value} of {limit}")
    return replace(result, passed=passed, value=value, limit=limit)


__all__ = [
    "GATES", "CandidateView", "Gate", "GateResult", "Reference", "accuracy_gate", "backdoor_gate",
    "basin_gate", "class_gate", "distance_gate", "find_gates", "finite_gate", "pre_activation_gate",
    "robust_gate", "run_gates", "stale_asr", "stale_gate", "stale_share_gate", "watermark_gate",
]  # fmt: skip
