"""Gates: what a candidate must pass before it becomes a generation, all on the gate split.

A gate is a pure function that returns its measured value, its limit and, where it fails, a reason.
Every gate is always run: a rejected candidate gets every reason, not the first (STYLE, rule 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from g2d.attacks import pgd
from g2d.core.types import Logits, State
from g2d.generator.guidance import Exposure
from g2d.settings import GateSettings
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.weights.symmetry import Coupling, aligned_distances


@dataclass(frozen=True)
class GateResult:
    """One gate's verdict. `value` is what was measured, `limit` what it was held against."""

    gate: str
    passed: bool
    value: float
    limit: float
    reason: str = ""


@dataclass(frozen=True)
class Reference:
    """What a candidate is compared with: the base's correctness on the gate split, (n,) bool.

    `eps` and `bounds` are the task's attack budget (inf-norm) and data range, for the robust gate.
    """

    split: Split
    base_correct: Tensor
    classes: int
    eps: float = 0.0
    bounds: tuple[float, float] | None = None


def run_gates(
    state: State,
    model: Logits,
    reference: Reference,
    exposures: Sequence[Exposure],
    exposed_states: Mapping[int, State],
    chain: Sequence[Coupling],
    settings: GateSettings,
) -> list[GateResult]:
    """Judge a candidate by every gate.

    Args:
        state: the candidate's state dict. model: its forward pass, in evaluation mode.
        exposures: those whose attacks are remembered. exposed_states: every exposed generation's,
            by number.
    """
    logits = predict(model, reference.split.x)
    results = [finite_gate(state, logits)]
    correct = logits.argmax(1) == reference.split.y
    results.append(accuracy_gate(correct, reference, settings))
    results.append(class_gate(correct, reference, settings))
    results.append(distance_gate(state, exposed_states, chain, settings))
    results.append(stale_gate(model, exposures, settings))
    if settings.robust > 0:
        results.append(robust_gate(model, reference, settings))
    return results


def finite_gate(state: State, logits: Tensor) -> GateResult:
    """Every parameter and every logit on the gate split is finite."""
    bad = sum(int((~torch.isfinite(t)).sum()) for t in state.values() if t.is_floating_point())
    bad += int((~torch.isfinite(logits)).sum())
    reason = f"{bad} parameters or logits are NaN or infinite" if bad else ""
    return GateResult("finite", bad == 0, float(bad), 0.0, reason)


def accuracy_gate(correct: Tensor, reference: Reference, settings: GateSettings) -> GateResult:
    """Upper confidence bound of the paired accuracy drop against the base (one-sided, normal)."""
    drop = reference.base_correct.double() - correct.double()
    quantile = NormalDist().inv_cdf(settings.confidence)
    bound = float(drop.mean() + quantile * drop.std() / math.sqrt(len(drop)))
    passed = bound <= settings.accuracy_drop
    reason = (
        ""
        if passed
        else f"accuracy may be {bound:.2%} below the base's "
        f"({settings.confidence:.0%} bound; measured {float(drop.mean()):.2%}); "
        f"{settings.accuracy_drop:.2%} is allowed"
    )
    return GateResult("accuracy", passed, bound, settings.accuracy_drop, reason)


def class_gate(correct: Tensor, reference: Reference, settings: GateSettings) -> GateResult:
    """No class may fall far below its base accuracy (bias)."""
    worst, which = -1.0, 0
    for label in range(reference.classes):
        of = reference.split.y == label
        if not bool(of.any()):
            continue
        drop = float(reference.base_correct[of].double().mean() - correct[of].double().mean())
        if drop > worst:
            worst, which = drop, label
    passed = worst <= settings.class_drop
    reason = "" if passed else f"class {which} lost {worst:.2%}; {settings.class_drop:.2%} allowed"
    return GateResult("class", passed, worst, settings.class_drop, reason)


def distance_gate(
    state: State, exposed: Mapping[int, State], chain: Sequence[Coupling], settings: GateSettings
) -> GateResult:
    """Aligned relative L1 distance to the nearest exposed generation."""
    if not all(bool(torch.isfinite(t).all()) for t in state.values() if t.is_floating_point()):
        reason = "the distance of parameters that are not finite cannot be measured"
        return GateResult("distance", False, 0.0, settings.distance, reason)
    found = aligned_distances(exposed.values(), state, chain)
    distances = dict(zip(exposed, found, strict=True))
    if not distances:
        return GateResult("distance", True, 0.0, settings.distance)
    number, least = min(distances.items(), key=lambda item: item[1])
    passed = least >= settings.distance
    reason = (
        ""
        if passed
        else f"aligned distance {least:.4f} to exposed generation {number}; at least "
        f"{settings.distance:.4f} is required"
    )
    return GateResult("distance", passed, least, settings.distance, reason)


def stale_gate(model: Logits, exposures: Sequence[Exposure], settings: GateSettings) -> GateResult:
    """Stale ASR of every remembered exposure's gate-split attacks."""
    rates = [stale_asr(model, exposure) for exposure in exposures]
    worst = max(rates, default=0.0)
    passed = worst <= settings.stale_asr
    over = [
        f"{rate:.1%} (generation {exposure.number})"
        for rate, exposure in zip(rates, exposures, strict=True)
        if rate > settings.stale_asr
    ]
    reason = "" if passed else f"stale ASR over {settings.stale_asr:.0%}: " + ", ".join(over)
    return GateResult("stale_asr", passed, worst, settings.stale_asr, reason)


def robust_gate(model: Logits, reference: Reference, settings: GateSettings) -> GateResult:
    """Accuracy under PGD on the candidate itself: cheap, so an upper bound on what attacks leave.

    Every candidate meets the same examples and random starts: one that barely failed is not saved
    by another draw.
    """
    draws = torch.Generator().manual_seed(0)
    some = reference.split.sample(settings.pool, draws)
    attacked = pgd(
        model, some.x, some.y, eps=reference.eps, steps=settings.pool_steps, generator=draws,
        bounds=reference.bounds,
    )  # fmt: skip
    right = (predict(model, attacked).argmax(1) == some.y) & (
        predict(model, some.x).argmax(1) == some.y
    )
    value = float(right.double().mean())
    passed = value >= settings.robust
    reason = (
        ""
        if passed
        else f"accuracy under PGD-{settings.pool_steps} at eps {reference.eps:g} is {value:.1%} on "
        f"{len(some)} gate examples; at least {settings.robust:.1%} is required"
    )
    return GateResult("robust", passed, value, settings.robust, reason)


def stale_asr(model: Logits, exposure: Exposure) -> float:
    """Share of correctly classified gate inputs that the exposure's attacks flip."""
    clean = predict(model, exposure.gate_clean.x).argmax(1) == exposure.gate_clean.y
    attacked = predict(model, exposure.gate.x).argmax(1) == exposure.gate.y
    return float((clean & ~attacked).sum()) / max(1, int(clean.sum()))
