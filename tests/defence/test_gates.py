from __future__ import annotations

import pytest
import torch

from g2d.defence.gates import CandidateView, Reference, run_gates
from g2d.settings import GateSettings
from g2d.tasks.splits import Split


def reference(defence) -> Reference:
    return defence.reference


def gates_by_name(defence, state, settings=None, exposures=(), exposed=()):
    model = defence.task.model(0).eval()
    model.load_state_dict(state)
    view = CandidateView(
        state, model, reference(defence), list(exposures), dict(enumerate(exposed, 1)),
        defence._judge.chain,
        settings or GateSettings(),
    )  # fmt: skip
    return {result.gate: result for result in run_gates(view)}


def test_the_base_passes_the_gates_but_for_distance_to_itself(defence):
    state = defence.generation().state
    # 360 examples that agree leave 0.83 % open: no number of them would show a drop of 0.
    strict = GateSettings(accuracy_drop=0.0084, class_drop=0.0)
    results = gates_by_name(defence, state, strict, exposed=[state])
    assert results["accuracy"].passed
    assert results["class"].passed
    assert results["finite"].passed
    assert not results["distance"].passed
    assert "aligned distance" in results["distance"].reason


def test_a_permuted_copy_fails_the_distance_gate(defence):
    from g2d.weights.symmetry import permute

    state = defence.generation().state
    orders = [torch.arange(c.units).flip(0) for c in defence._judge.chain]
    moved = permute(state, defence._judge.chain, orders)
    assert not gates_by_name(defence, moved, exposed=[state])["distance"].passed


def test_every_reason_is_given(defence):
    state = {k: v.clone() for k, v in defence.generation().state.items()}
    for tensor in state.values():
        tensor.zero_()
    exposed = [defence.generation().state]
    results = gates_by_name(defence, state, exposed=exposed)
    failed = {name for name, result in results.items() if not result.passed}
    assert {"accuracy", "class"} <= failed
    assert all(results[name].reason for name in failed)
    state["7.bias"][0] = float("nan")
    assert "NaN" in gates_by_name(defence, state, exposed=exposed)["finite"].reason


def test_parameters_that_are_not_finite_fail_every_gate_that_can_tell(defence):
    base = defence.generation().state
    state = {k: torch.full_like(v, float("nan")) for k, v in base.items()}
    results = gates_by_name(defence, state, exposed=[base])
    assert not results["finite"].passed
    assert not results["distance"].passed
    assert not results["accuracy"].passed


def test_stale_gate_fails_where_attacks_still_work(defence):
    state = defence.generation().state
    e = defence.exposure(1)
    strict = GateSettings(stale_asr=0.0)
    result = gates_by_name(defence, state, strict, exposures=[e])["stale_asr"]
    assert not result.passed
    assert "generation 1" in result.reason
    assert result.value > 0.2


def judged(n, lost, **settings):
    from g2d.defence.gates import accuracy_gate

    base = torch.ones(n, dtype=torch.bool)
    candidate = base.clone()
    candidate[:lost] = False
    split = Split(torch.zeros(n, 1), torch.zeros(n, dtype=torch.long))
    view = CandidateView(
        {}, lambda x: torch.stack([candidate, ~candidate], 1).float(), Reference(split, base, 2),
        (), {}, (), GateSettings(**settings),
    )  # fmt: skip
    return accuracy_gate(view)


def test_accuracy_bound_is_wider_than_the_measured_drop():
    result = judged(400, 4, accuracy_drop=0.012)
    assert result.value == pytest.approx(0.022735, abs=1e-5)  # Clopper-Pearson of 4 in 400
    assert not result.passed
    assert "1.00%" in result.reason


def test_few_gate_examples_say_so_where_nothing_differs():
    """28 of 28 right were a bound of 0.00 %."""
    result = judged(28, 0)
    assert result.value == pytest.approx(1 - 0.05 ** (1 / 28))
    assert not result.passed
    assert "28 gate examples cannot show even where none differs (bound 10.15%)" in result.reason
    assert "give 299 or more, or raise accuracy_drop in [gates]" in result.reason
    assert judged(28, 0, accuracy_drop=0.11).passed
    assert judged(28, 0, accuracy_drop=0.11).entry()["n"] == 28
    assert "no number of them can" in judged(28, 0, accuracy_drop=0.0).reason
