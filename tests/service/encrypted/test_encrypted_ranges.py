"""Numbers in a generation's layers are held against what the plan keeps precise, layer by layer."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("tenseal", reason="homomorphic inference needs TenSEAL: pip install 'g2d[he]'")

from echoing import EchoingProcess
from g2d.errors import VaultError
from g2d.protect.homomorphic import Plan
from g2d.protect.homomorphic.matrices import affines
from g2d.protect.homomorphic.ranges import ranges_of
from g2d.rotation.events import Alarm
from g2d.service.encrypted.opening import EncodingLoader
from g2d.service.http.options import Options
from g2d.settings import ServeSettings, Settings
from g2d.tasks.networks import digits_he_cnn
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import pack
from he_networks import mixed

SERVING = ServeSettings(encrypted="also")


def test_every_layer_counts_and_what_is_squared_is_more_than_its_argument():
    """x is given to ax² + bx + c; what is squared is √|a|·x + b / 2√|a| (`matrices.affines`)."""
    network = mixed()
    plan, state = Plan.of(network, (2, 8, 8)), network.state_dict()
    one, two, three = (step.activation.name for step in plan.steps[:-1])
    found = ranges_of(plan, state, {one: 3.0, two: 5.0, three: 7.0})
    assert found.over == found.wrapping == {}
    assert found.told() == ""
    a, b = -0.5, 0.7
    shift = abs(b) / (2 * math.sqrt(abs(a)))
    assert affines(plan.steps, state)  # the same coefficients are read there
    just = (plan.bound - shift) / math.sqrt(abs(a))
    assert ranges_of(plan, state, {one: plan.bound, two: just - 1e-3, three: 7.0}).over == {}
    found = ranges_of(plan, state, {one: plan.bound + 1, two: just + 1e-2, three: 7.0})
    assert list(found.over) == [one, two]
    assert found.wrapping == {}
    for name in (one, two):
        assert repr(name) in found.told()
    assert "\n" not in found.told()
    found = ranges_of(plan, state, {one: 3.0, two: 5.0, three: 1e9})
    assert list(found.wrapping) == [three]
    for wrong in (math.inf, math.nan, -1.0, "7", None, True):
        assert list(ranges_of(plan, state, {one: 1.0, two: wrong, three: 1.0}).unknown) == [two]
    assert list(ranges_of(plan, state, {}).unknown) == [one, two, three]


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a vault whose generation 1 has such pre-activations; returns it and its alarms."""
    monkeypatch.setattr("g2d.service.encrypted.evaluators.Process", EchoingProcess)
    made = []

    def of(figures, number: int = 1):
        torch.manual_seed(0)
        path, manifest = tmp_path / "vault", {} if figures is None else {"figures": figures}
        if number == 1:
            Vault.create(path, Settings().override(task__name="digits-he").to_toml()).close()
        with Vault.open(path, write=True) as vault:
            weights = pack(digits_he_cnn().state_dict())
            vault.accept({"weights": weights}, manifest, activate=True)
        if number == 1:
            made.append(EncodingLoader(path, "g2d"))
            made[0].encrypt(Options(), SERVING)
        return made[0]

    yield of
    for loader in made:
        loader.close()


def alarms(loader) -> list[str]:
    found = [e.text for e in loader.events if isinstance(e, Alarm) and e.kind == "encrypted"]
    assert not any("\n" in text for text in found)
    return found


def of_layers(**largest) -> dict:
    return {"pre_activations": {"1": 2.0, "3": 9.0, "6": 5.0} | largest}


def test_a_generation_beyond_what_is_precise_is_told_and_one_that_wraps_around_refused(opened):
    loader = opened(of_layers())
    loader.first()
    assert alarms(loader) == []
    loader = opened(of_layers(**{"3": 5000.0}), 2)
    loader.load(2, 1)
    (text,) = alarms(loader)
    assert "generation 2" in text
    assert "layer '3'" in text
    opened(of_layers(**{"6": 1e6}), 3)
    with pytest.raises(VaultError, match="layer '6'"):
        loader.load(3, 2)


@pytest.mark.parametrize("figures", [None, {}, {"pre_activations": [1]}, of_layers(**{"3": "x"})])
def test_a_generation_that_does_not_say_is_told_once(opened, figures):
    loader = opened(figures)
    loader.first()
    opened(figures, 2)
    loader.load(2, 1)
    (text,) = alarms(loader)
    assert "does not say" in text
    assert "'3'" in text
