"""A vault of squares from its population to the service; the gate on what is squared."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import g2d
import states
from commands import succeed
from g2d.core.engine import SerialEngine
from g2d.core.polynomial import largest_inputs
from g2d.defence.candidates import Judge
from g2d.defence.gates.polynomials import pre_activation_gate
from g2d.rotation.snapshot import Rotor
from g2d.service.loader import VaultLoader
from g2d.settings import GateSettings, Settings, build
from g2d.tasks.networks import digits_cnn, digits_he_cnn
from g2d.tasks.polynomials import Quadratic, Square
from g2d.vault.vault import Vault
from g2d.weights.symmetry import aligned_distances, permute, rescale
from tiny_tables import TINY


@pytest.fixture(scope="module")
def built(once):
    """Population, generator and two rotations."""

    def make(path):
        small = TINY["population"] | {"members": 2, "basins": 1, "base_steps": 120}
        # Two members of one basin: mixtures so near each other are refused by half, by chance.
        gates = TINY["gates"] | {"distance": 0.0}
        tables = {"task": {"name": "digits-he"}, **TINY, "population": small, "gates": gates}
        settings = build(Settings, tables, "tests")
        with g2d.Defence.build("digits-he", path, settings, engine=SerialEngine()) as defence:
            defence.generate(2)

    return once.copy("squares", make)


@pytest.fixture
def vault(built, tmp_path):
    return shutil.copytree(built, tmp_path / "vault")


@pytest.fixture
def squares(vault):
    with g2d.Defence.open(vault) as defence:
        yield defence


def gate_of(defence, state, **changes):
    found = defence._judge(state, [], {}, GateSettings(accuracy_drop=1.0, **changes))
    return next((result for result in found if result.gate == "pre_activation"), None)


def grown(state, name, by):
    """A network whose sums in one layer are larger, as those after it are by less."""
    return dict(state) | {f"{name}.{part}": state[f"{name}.{part}"] * by for part in
                          ("weight", "bias")}  # fmt: skip


def test_every_generation_says_how_large_its_pre_activations_are(squares):
    limits = squares.reference.pre_activations
    assert list(limits) == ["1", "3", "6"]
    for number in (2, 3):
        (gate,) = (
            entry for entry in squares.vault.generation(number).manifest["gates"]
            if entry["gate"] == "pre_activation"
        )  # fmt: skip
        assert gate["passed"]
        assert 0 < gate["value"] <= gate["limit"]
        assert any(gate["limit"] == pytest.approx(3 * largest) for largest in limits.values())
        assert gate["title"] == "largest pre-activation"
    for number in (1, 2, 3):  # every layer's, of the base, too
        made = squares.generation(number)
        told = made.manifest["figures"]["pre_activations"]
        assert told == pytest.approx(
            largest_inputs(made.model(), squares.reference.split.x), rel=1e-4
        )
    assert "largest pre-activation" in succeed("show", squares.vault.path).stdout


def test_a_generation_whose_polynomials_are_fed_too_much_is_refused_in_plain_words(squares):
    state = squares.generation(1).state
    assert gate_of(squares, state).passed
    last = gate_of(squares, grown(state, "5", 4.0))
    assert (last.passed, last.n) == (False, 360)
    assert last.value == pytest.approx(4 * squares.reference.pre_activations["6"])
    found = gate_of(squares, grown(state, "2", 4.0))
    assert found.value > 2 * last.value  # what is four times as large is squared once more
    assert "layer '3' squares values up to" in found.reason
    assert "layer '6' squares values up to" in found.reason
    assert "(3 times the base's largest): polynomials explode" in found.reason
    assert gate_of(squares, grown(state, "2", 4.0), pre_activation=1000.0).passed
    assert gate_of(squares, grown(state, "2", 4.0), pre_activation=0.0) is None
    broken = dict(state) | {"0.bias": torch.full_like(state["0.bias"], torch.nan)}
    assert gate_of(squares, broken).value == torch.inf


def test_networks_without_polynomials_are_not_run_for_it(digits):
    model = digits_cnn()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it was run"))
    assert largest_inputs(model, digits.splits.gate.x) == {}
    judge = Judge(digits, digits.model(0).state_dict())
    assert judge.reference.pre_activations == {}
    assert pre_activation_gate(_view(digits, judge)) is None


def _view(task, judge):
    from g2d.defence.gates import CandidateView

    state = task.model(0).state_dict()
    return CandidateView(state, task.model(0), judge.reference, (), {}, (), GateSettings())


def test_the_largest_of_all_batches_counts():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), Square(), nn.Sequential(Quadratic(1, 2)))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    x = torch.tensor([[1.0, -3], [0, 2], [0, 1]])
    assert largest_inputs(model, x, batch=2) == {"1": 3.0, "2.0": 9.0}
    assert largest_inputs(model, x[1:], batch=1) == {"1": 2.0, "2.0": 4.0}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_copy_with_other_signs_and_scales_fails_the_distance_gate(squares):
    state, chain = squares.generation(2).state, squares._judge.chain
    assert [(layer.degree, layer.even) for layer in chain] == [(2, True)] * 3
    moved = permute(state, chain, [torch.arange(layer.units).flip(0) for layer in chain])
    moved = rescale(moved, chain, [torch.full((layer.units,), -0.5) for layer in chain])
    assert aligned_distances([state], moved, chain)[0] < 5e-3
    found = squares._judge(moved, [], {2: state}, GateSettings())
    assert [r.gate for r in found if not r.passed and r.gate == "distance"] == ["distance"]


def test_what_is_exported_can_be_taken_up_by_another_vault(vault, tmp_path):
    (tmp_path / "zoo").mkdir()
    for number in (1, 2, 3):
        out = tmp_path / "zoo" / f"{number}.safetensors"
        succeed("export", vault, out, "--number", number)
        with Vault.open(vault) as opened:
            assert out.read_bytes() == opened.read_generation(number)
        digits_he_cnn().load_state_dict(load_file(out))
    other = tmp_path / "other"
    command = ("population", other, "--task", "digits-he", "--from-checkpoints", tmp_path / "zoo")
    assert "3 of 3 members (adopted)" in succeed(*command).stdout


def test_generations_are_served_in_a_secret_layout_and_rotate(vault):
    x = g2d.load_task("digits-he").splits.test.x[:16]
    with g2d.Defence.open(vault) as defence:
        expected = {n: defence.generation(n).model()(x).numpy() for n in (2, 3)}
        rotor = Rotor(defence)
        assert rotor.snapshot.layout == "secret"
        assert np.allclose(rotor(x), expected[3], atol=1e-5)
        assert rotor.rotate() == 4
        assert np.allclose(rotor(x), defence.generation(4).model()(x), atol=1e-5)
    loader = VaultLoader(vault, "g2d")
    try:
        for snapshot in (loader.load(2, 1), loader.load(3, 2), loader.first()[0]):
            assert (snapshot.layout, snapshot.check()) == ("secret", [])
            if snapshot.number in expected:
                assert np.allclose(
                    snapshot.predict(x.numpy()), expected[snapshot.number], atol=1e-5
                )
    finally:
        loader.close()


def test_the_gate_is_in_the_settings_and_digests_of_older_vaults_stay():
    assert Settings().gates.pre_activation == 3.0
    assert "pre_activation" not in Settings().to_toml(former=True)
    assert dataclasses.replace(GateSettings(), pre_activation=5).pre_activation == 5.0


def learning() -> nn.Module:
    """A network whose coefficients are trained: scalars of the state dict."""
    return nn.Sequential(
        nn.Linear(6, 8), Quadratic(0.5, 1, learned=True), nn.Linear(8, 6), Quadratic(0.5, 1),
        nn.Linear(6, 3),
    )  # fmt: skip


def test_learned_coefficients_are_generated_with_the_weights(tmp_path):
    task, settings = states.task(learning), states.settings()
    with g2d.Defence.build(task, tmp_path / "v", settings, engine=SerialEngine()) as defence:
        assert [(c.degree, c.even) for c in defence._judge.chain] == [(0, False), (0, True)]
        (made,) = defence.generate()
        base = defence.generation(1).state
        assert made.state["1.a"].shape == ()
        assert made.state["1.a"] != base["1.a"]
        assert list(defence.reference.pre_activations) == ["1", "3"]
        rotor, x = Rotor(defence), task.splits.test.x
        assert rotor.snapshot.layout == "secret"
        assert np.allclose(rotor(x), made.model()(x), atol=1e-5)
