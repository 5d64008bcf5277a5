"""A guarded model answers as before, and no flipped bit acts outside its layer's range."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from g2d.errors import CheckpointError
from g2d.protect.integrity import MemoryWatch
from g2d.protect.ranges import Ranges, hold_in_ranges


class Mixed(nn.Module):
    """Batch norm, a tied weight, two floating types, a scalar, a zero, an unsaved buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.in_proj.weight
        self.out_proj = nn.Linear(6, 3, bias=False)
        self.brief = nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("unsaved", torch.tensor([0.5, 1.0]), persistent=False)
        self.register_buffer("none", None)
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.in_proj(x - self.mean)))
        return self.out_proj(torch.relu(self.tied(hidden))) * self.scale + self.unsaved.sum()


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Mixed()
    model(3 * torch.randn(64, 6))  # gives batch norm its statistics
    return model.eval().requires_grad_(False)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is guarded: the unsaved buffer is not."""
    saved = model.state_dict()
    every = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor for name, tensor in every.items() if name in saved}


def flip(tensor: torch.Tensor, bit: int) -> None:
    raw = tensor.view(-1).view(torch.uint8)
    raw[bit // 8] ^= 1 << bit % 8


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


X = torch.randn(16, 6, generator=torch.Generator().manual_seed(5))


@given(
    seed=st.integers(0, 10**6),
    flips=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10**6)), max_size=60),
)
@settings(max_examples=60, deadline=None)
def test_after_a_guarded_forward_every_value_is_finite_and_in_range_whatever_flipped(seed, flips):
    model = make(seed)
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    hold_in_ranges(model, Ranges.of(model.state_dict()))
    floating = [t for t in tensors(model).values() if t.is_floating_point() and t.numel()]
    for which, bit in flips:
        tensor = floating[which % len(floating)]
        flip(tensor, bit % (8 * tensor.numel() * tensor.element_size()))
    logits = model(X)
    assert bool(torch.isfinite(logits).all())
    for name, tensor in tensors(model).items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        assert float(tensor.abs().max()) <= float(before[name].abs().max())
    assert float(model.norm.running_var.min()) >= float(before["norm.running_var"].min()) > 0


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_an_untouched_model_answers_bit_by_bit_as_before_and_nothing_is_written(seed, rows):
    model = make(seed)
    state, expected = state_of(model), model(X[:rows])
    versions = [tensor._version for tensor in tensors(model).values()]
    hold_in_ranges(model, Ranges.of(state))
    assert same_bits(model(X[:rows]), expected)
    assert model.state_dict().keys() == state.keys()
    assert all(same_bits(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert versions == [tensor._version for tensor in tensors(model).values()]


@pytest.mark.parametrize(
    ("given_", "kept"),
    [(float("nan"), 0.0), (float("inf"), 2.0), (-float("inf"), -2.0), (1e38, 2.0), (-2.5, -2.0)],
)
def test_what_left_the_range_comes_to_its_nearest_end_and_nan_to_zero(given_, kept):
    ranges = Ranges.of({"w": torch.tensor([0.5, -2.0, -0.0])})
    hit = torch.tensor([given_, -2.0, -0.0])
    assert ranges.hold("w", hit)
    assert hit.tolist() == [kept, -2.0, 0.0]
    assert not ranges.hold("w", hit)


def test_a_running_variance_keeps_its_least_value_where_it_turns_negative_tiny_or_nan():
    ranges = Ranges.of({"norm.running_var": torch.tensor([0.25, 4.0])})
    for bad in (-4.0, 0.0, 1e-30, float("nan"), -float("inf")):
        hit = torch.tensor([bad, 4.0])
        assert ranges.hold("norm.running_var", hit)
        assert hit.tolist() == [0.25, 4.0]


def test_integers_are_left_alone():
    model = make()
    hold_in_ranges(model, Ranges.of(model.state_dict()))
    model.norm.num_batches_tracked.fill_(-(2**40))
    model(X)
    assert int(model.norm.num_batches_tracked) == -(2**40)


def test_a_removed_guard_holds_nothing():
    model = make()
    handle = hold_in_ranges(model, Ranges.of(model.state_dict()))
    handle.remove()
    model.scale.fill_(1e30)
    model(X)
    assert float(model.scale) == pytest.approx(1e30)
    assert not model._forward_pre_hooks


def test_the_guard_finds_tensors_that_were_replaced_by_casts_and_functional_calls():
    model = make()
    hold_in_ranges(model, Ranges.of(model.state_dict()))
    model.double()
    model.mean[0] = model.scale.data = torch.tensor(1e200, dtype=torch.float64)
    model(X.double())
    assert float(model.mean[0]) == 0
    assert float(model.scale) == 2
    swapped = {"scale": torch.tensor(float("inf"), dtype=torch.float64)}
    assert bool(torch.isfinite(functional_call(model, swapped, (X.double(),))).all())


@pytest.mark.parametrize("through", ["copy", "pickle"])
def test_a_copy_of_a_guarded_model_guards_itself_alone(through):
    model = make()
    hold_in_ranges(model, Ranges.of(model.state_dict()))
    if through == "copy":
        twin = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    model.scale.fill_(1e30)
    twin.scale.fill_(-1e30)
    twin(X)
    assert float(twin.scale) == -2
    assert float(model.scale) == pytest.approx(1e30)


def test_a_model_that_carries_gradients_is_guarded_and_still_differentiable():
    model = make().requires_grad_(True)
    hold_in_ranges(model, Ranges.of(model.state_dict()))
    with torch.no_grad():
        model.out_proj.weight[0, 0] = float("nan")
    loss = model(X).square().mean()
    loss.backward()
    assert float(model.out_proj.weight[0, 0].detach()) == 0
    assert bool(torch.isfinite(model.out_proj.weight.grad).all())


def test_a_watch_still_finds_and_heals_what_the_guard_held():
    model = make()
    state, watch = state_of(model), MemoryWatch(model)
    hold_in_ranges(model, Ranges.of(state))
    flip(model.out_proj.weight, 30)
    model(X)
    assert watch.check() == ["out_proj.weight"]
    assert watch.restore(state) == ["out_proj.weight"]
    assert watch.check() == []


def test_threads_that_answer_while_bits_flip_leave_the_model_in_range():
    model = make()
    hold_in_ranges(model, Ranges.of(model.state_dict()))
    done = threading.Event()

    def answer() -> None:
        while not done.is_set():
            model(X)

    threads = [threading.Thread(target=answer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for index in range(200):
        flip(model.out_proj.weight, 32 * (index % 18) + 30)
    done.set()
    for thread in threads:
        thread.join()
    assert bool(torch.isfinite(model(X)).all())


def test_ranges_of_another_model_or_state_are_refused_with_every_reason():
    model = make()
    state = state_of(model)
    wrong = {name: t for name, t in state.items() if name != "mean"} | {"scal": torch.ones(2)}
    wrong["scale"] = torch.tensor(1.5)
    with pytest.raises(CheckpointError) as refused:
        hold_in_ranges(model, Ranges.of(wrong))
    for part in ("'mean' has no range", "'scal', which the model lacks", "Did you mean 'scale'",
                 "'scale' leaves its range of -1.5 to 1.5"):  # fmt: skip
        assert part in str(refused.value)
    assert not model._forward_pre_hooks
    model.scale.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="'scale' leaves its range"):
        hold_in_ranges(model, Ranges.of(state))


@pytest.mark.parametrize(
    ("name", "values"),
    [("w", [1.0, float("nan")]), ("w", [float("inf")]), ("norm.running_var", [-1e-9, 1.0])],
)
def test_a_state_that_cannot_be_known_good_gives_no_ranges(name, values):
    with pytest.raises(CheckpointError, match="no known-good state"):
        Ranges.of({name: torch.tensor(values)})


class Masked(nn.Module):
    """A causal mask of minus infinity and a cache that the first forward fills; neither saved."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(6, 6)
        mask = torch.full((6, 6), -torch.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("cache", torch.zeros(6), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.cache.any():
            self.cache += torch.arange(6)
        return self.in_proj(x) @ (self.mask.softmax(1)) + self.cache


def test_buffers_that_are_not_saved_are_left_alone():
    torch.manual_seed(0)
    model = Masked().eval().requires_grad_(False)
    expected = model(X)
    model.cache.zero_()
    hold_in_ranges(model, Ranges.of(model.state_dict()))
    assert torch.equal(model(X), expected)
    assert torch.equal(model(X), expected)
