"""The census counts parameters that one bit flip ruins, as trying every bit would."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

import g2d
from g2d.attacks.bitflip import BITS, FLOAT_BITS, Flip, flip_float, flipped, quantise
from g2d.core.shares import wilson
from g2d.errors import CheckpointError, SettingsError
from g2d.protect.ranges import Ranges, hold_in_ranges
from g2d.redteam.flip_census import Census, flip_census
from g2d.tasks.inference import accuracy
from g2d.training.loop import Batches, clean_step, train


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tiny(digits: g2d.Task) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator())
    batches = Batches(digits, digits.splits.train, 64, generator())
    return train(model, clean_step(digits, batches), steps=300, rate=5e-3)


def census(model: nn.Module, digits: g2d.Task, count: int = 60, **more: object) -> Census:
    split, state = digits.splits.gate, more.pop("state", model.state_dict())
    return flip_census(model, state, split, parameters=count, generator=generator(2), **more)


def test_one_flip_ruins_a_float_network_at_many_parameters_and_clamps_stop_that(tiny, digits):
    plain = census(tiny, digits, 150)
    held = census(tiny, digits, 150, limits=Ranges.of(tiny.state_dict()))
    assert plain.accuracy == held.accuracy
    assert plain.accuracy.value > 0.9
    assert plain.fragile.value > 0.25
    assert held.fragile.value < 0.02
    assert plain.passes < 0.7 * 150 * FLOAT_BITS  # the costliest flips come first, and end it
    for one in (plain, held):
        assert (one.fragile.low, one.fragile.high) == wilson(one.fragile.value * 150, 150)
        assert one.relative.value >= one.fragile.value
    costly = [toll.flip.bit for toll in plain.tolls if toll.lost > 0.1]
    assert costly.count(30) > 0.9 * len(costly)


@pytest.mark.parametrize("clamps", [False, True])
def test_the_census_agrees_with_trying_every_bit_through_the_guard(tiny, digits, clamps):
    # The slow and obvious way: 32 states for each parameter, loaded whole, the real guard on.
    state, split = tiny.state_dict(), digits.splits.gate
    limits = Ranges.of(state) if clamps else None
    found = census(tiny, digits, 12, limits=limits, threshold=0.02)
    model = copy.deepcopy(tiny)
    if clamps:
        hold_in_ranges(model, limits)
    for toll in found.tolls:
        lost = []
        for bit in range(FLOAT_BITS):
            model.load_state_dict(
                dict(state) | {toll.tensor: flip_float(state[toll.tensor], toll.index, bit)}
            )
            lost.append(found.accuracy.value - accuracy(model, split))
        assert (max(lost) > 0.02 + 1e-9) == (toll.lost > 0.02 + 1e-9)
        assert toll.lost == pytest.approx(lost[toll.flip.bit])
        if toll.lost <= 0.02:
            assert toll.lost == pytest.approx(max(lost))


def test_the_census_of_a_guarded_model_is_that_of_its_limits(tiny, digits):
    limits, guarded = Ranges.of(tiny.state_dict()), copy.deepcopy(tiny)
    hold_in_ranges(guarded, limits)
    by_guard, by_limits = census(guarded, digits, 30), census(tiny, digits, 30, limits=limits)
    assert by_guard.fragile == by_limits.fragile
    assert [t.lost for t in by_guard.tolls] == [t.lost for t in by_limits.tolls]
    assert by_guard.passes > by_limits.passes  # flips that come to one weight are judged once


@pytest.mark.parametrize("eight", [False, True])
def test_a_census_puts_every_weight_back_and_repeats_with_the_seed(
    tiny, digits, eight, monkeypatch
):
    seen = []
    real = copy.deepcopy
    monkeypatch.setattr(
        "g2d.redteam.flip_census.copy.deepcopy", lambda m: seen.append(real(m)) or seen[-1]
    )
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    state = quantise(before) if eight else before
    first = census(tiny, digits, 25, state=state)
    assert first == census(tiny, digits, 25, state=state)
    assert all(torch.equal(t, before[n]) for n, t in tiny.state_dict().items())
    expected = state.state() if eight else before
    for flipped_copy in seen:
        for name, tensor in flipped_copy.state_dict().items():
            assert torch.equal(tensor.view(torch.int32), expected[name].view(torch.int32))


def test_a_census_puts_the_weight_back_where_the_model_fails(tiny, digits, monkeypatch):
    seen, real = [], copy.deepcopy
    monkeypatch.setattr(
        "g2d.redteam.flip_census.copy.deepcopy", lambda m: seen.append(real(m)) or seen[-1]
    )
    state, calls = tiny.state_dict(), []

    def failing(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        if len(calls) > 5:
            raise RuntimeError("no memory")
        return model(x)

    monkeypatch.setattr("g2d.redteam.flip_census.predict", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        census(tiny, digits)
    assert all(torch.equal(t, state[n]) for n, t in seen[0].state_dict().items())


def test_the_census_of_codes_agrees_with_flipping_them(tiny, digits):
    stored, split = quantise(tiny.state_dict()), digits.splits.gate
    found = census(tiny, digits, 20, state=stored)
    assert {toll.tensor for toll in found.tolls} <= set(stored.codes)
    assert found.passes <= 1 + 20 * BITS
    for toll in found.tolls:
        lost = []
        for bit in range(BITS):
            state = flipped(stored, [Flip(toll.tensor, toll.index, bit)]).state()
            right = accuracy(lambda x, s=state: functional_call(tiny, s, (x,)), split)
            lost.append(found.accuracy.value - right)
        assert max(lost) <= 0.1
        assert toll.lost == pytest.approx(max(lost))


def test_a_weight_that_its_range_holds_fast_has_no_costly_flip(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    state = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
    found = census(model, digits, 5, state=state, limits=Ranges.of(state))
    # Minus zero is all that is left of 32 flips of a zero whose range is zero.
    assert found.passes <= 1 + 5
    assert found.fragile.value == found.relative.value == 0


@pytest.mark.parametrize(
    "more", [{"count": 0}, {"threshold": 0.0}, {"threshold": 1.0}, {"threshold": math.nan}]
)
def test_a_census_of_nothing_is_refused(tiny, digits, more):
    with pytest.raises(SettingsError, match="a census needs"):
        census(tiny, digits, **more)


def test_a_census_refuses_states_and_limits_that_do_not_fit(tiny, digits):
    state = tiny.state_dict()
    with pytest.raises(CheckpointError, match="does not fit the model"):
        census(tiny, digits, state={"1.weight": state["1.weight"]})
    narrow = Ranges.of({name: tensor / 2 for name, tensor in state.items()})
    with pytest.raises(CheckpointError, match="leaves its range"):
        census(tiny, digits, limits=narrow)
    with pytest.raises(SettingsError, match="float64"):
        census(copy.deepcopy(tiny).double(), digits)


class Odd(nn.Module):
    """Gives a pair, as recurrent layers do."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1), x


class First(nn.Module):
    def forward(self, x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return x[0]


class Selfish(nn.Module):
    """Changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 3 * self.inner(x)
        return x


def test_models_whose_layers_pass_on_no_plain_batch_are_judged_whole(digits):
    draws = generator()
    for middle in ([Odd(), First()], [nn.Flatten(), nn.Linear(64, 64), Selfish()]):
        model = nn.Sequential(*middle, nn.Linear(64, 10)).requires_grad_(False)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1, generator=draws)
        split = digits.splits.gate.take(range(100))
        whole = nn.Sequential(nn.Identity(), model)  # a hook on it forbids every shortcut
        whole.register_forward_pre_hook(lambda module, inputs: (inputs[0].clone(),))
        found, expected = (
            flip_census(m, m.state_dict(), split, parameters=25, generator=generator(2))
            for m in (model, whole)
        )
        assert found.fragile == expected.fragile
        assert [t.lost for t in found.tolls] == [t.lost for t in expected.tolls]
