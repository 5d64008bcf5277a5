"""A watch finds any flipped bit, soon and cheaply, and heals it from what was verified."""

from __future__ import annotations

import itertools
import random
import threading
import time

import pytest
import torch
from torch import nn

from g2d.errors import CheckpointError
from g2d.protect.integrity import MemoryWatch
from stand_ins import wait_for


class Mixed(nn.Module):
    """Two floating types, integers, a tied weight, a scalar and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.in_proj.weight
        self.brief = nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("mask", torch.tensor([True, False]), persistent=False)


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Mixed().eval().requires_grad_(False)


def copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def flip(tensor: torch.Tensor, bit: int) -> None:
    raw = tensor.view(-1).view(torch.uint8)
    raw[bit // 8] ^= 1 << bit % 8


def test_every_flipped_bit_is_found_named_and_healed():
    model, chance = make(), random.Random(0)
    state, watch = copy(model), MemoryWatch(model)
    assert watch.check() == []
    tensors = model.state_dict()
    for _ in range(300):
        name = chance.choice(sorted(tensors))
        bits = 8 * tensors[name].numel() * tensors[name].element_size()
        flip(tensors[name], chance.randrange(bits))
        twins = {"in_proj.weight", "tied.weight"}
        assert set(watch.check()) == (twins if name in twins else {name})
        assert name in watch.restore(state)
        assert watch.check() == []
    assert all(torch.equal(now, state[name]) for name, now in model.state_dict().items())


def test_a_buffer_that_is_not_saved_is_watched_and_cannot_be_healed_from_a_file():
    model = make()
    state, watch = copy(model), MemoryWatch(model)
    model.mask[0] = False
    assert watch.check() == ["mask"]
    with pytest.raises(CheckpointError, match="vault anew"):
        watch.restore(state)


def test_the_first_check_compares_with_what_was_verified():
    model = make()
    verified = copy(model)
    flip(model.state_dict()["norm.running_var"], 31)  # between load and watch
    watch = MemoryWatch(model, verified)
    assert watch.check() == ["norm.running_var"]
    assert watch.restore(verified) == ["norm.running_var"]
    with pytest.raises(CheckpointError, match="no tensor 'foreign'"):
        MemoryWatch(model, {"foreign": torch.zeros(1)})


def test_nothing_is_healed_from_another_generation():
    model = make()
    watch = MemoryWatch(model)
    flip(model.state_dict()["scale"], 3)
    flip(model.state_dict()["brief"], 3)
    before = copy(model)
    with pytest.raises(CheckpointError, match="not the one watched"):
        watch.restore(copy(make(1)))
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())


def test_rebuilt_parts_are_changes():
    model = make()
    state, watch = copy(model), MemoryWatch(model)
    model.scale = nn.Parameter(torch.tensor([2.0]), requires_grad=False)
    assert watch.check() == ["scale"]
    with pytest.raises(CheckpointError, match="another shape"):
        watch.restore(state)
    del model.scale
    model.extra = nn.Parameter(torch.zeros(1))
    assert watch.check() == ["extra", "scale"]


def test_a_megabyte_is_watched_within_a_second_and_one_per_cent_of_a_core():
    layers = [nn.Linear(64, 480), nn.ReLU(), nn.Linear(480, 480), nn.ReLU()]
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    state = copy(model)
    assert 1e6 < sum(4 * tensor.numel() for tensor in state.values()) < 1.1e6
    watch, stop = MemoryWatch(model), threading.Event()
    assert watch.interval < 0.9
    found, spent, checks = [], [], itertools.count(1)
    begun = 0

    def patrol() -> None:
        nonlocal begun
        cpu = time.thread_time()
        while not stop.wait(watch.interval):
            begun = next(checks)
            if watch.check():
                watch.restore(state)
                found.append(begun)
        spent.append((time.thread_time() - cpu) / (begun * watch.interval))

    thread = threading.Thread(target=patrol)
    thread.start()
    chance = random.Random(1)
    for turn in range(3):
        time.sleep(chance.uniform(0.3, 0.6))
        before = begun  # one may be under way: it finds the change, or the one after it does
        flip(model[2].weight, chance.randrange(480 * 480 * 32))
        wait_for(lambda turn=turn: len(found) > turn)
        assert found[-1] <= before + 1
    stop.set()
    thread.join()
    assert len(found) == 3
    assert spent[0] <= 0.01
