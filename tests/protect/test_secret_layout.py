"""A secret layout: the function stays, positions do not, and what is watched is the hidden form."""

from __future__ import annotations

import io
import random
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call

import states
from g2d.errors import CheckpointError, SettingsError, VaultError
from g2d.protect.integrity import MemoryWatch
from g2d.protect.layout import (
    CLOSE,
    Units,
    conceal,
    hide,
    is_secret,
    move,
    places,
    random_inputs,
    reveal,
)
from g2d.protect.snapshots import build_snapshot
from g2d.tasks.networks import digits_cnn, mnist_cnn, mnist_robust_cnn
from g2d.weights.layout import same_bits, whole_state
from g2d.weights.symmetry import couplings


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))


def normed() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.LeakyReLU(),
        nn.Conv2d(12, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU(), nn.Flatten(),
        nn.Linear(160, 4),
    )  # fmt: skip


CHAINS = [
    pytest.param(mlp, (6,), id="mlp"),
    pytest.param(digits_cnn, (1, 8, 8), id="digits_cnn"),
    pytest.param(mnist_cnn, (1, 28, 28), id="mnist_cnn"),
    pytest.param(mnist_robust_cnn, (1, 28, 28), id="mnist_robust_cnn"),
    pytest.param(normed, (1, 8, 8), id="cnn with batch norm"),
]


def source(seed: int = 0):
    return random.Random(seed).randbytes


def made(factory, shape, seed: int = 0):
    torch.manual_seed(seed)
    model = factory()
    model.train()(torch.randn(16, *shape))  # batch norm gets statistics that are not the defaults
    model = model.eval().requires_grad_(False)
    return model, whole_state(model)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one - other).abs().amax(1) <= CLOSE * (1 + one.abs().amax(1))).all())


@pytest.mark.parametrize(("factory", "shape"), CHAINS)
def test_hidden_units_leave_logits_and_can_be_revealed_bit_by_bit(factory, shape):
    model, state = made(factory, shape)
    x, chain = random_inputs(shape, torch.float32), couplings(model, torch.randn(8, *shape))
    assert chain
    before = functional_call(model, state, (x,))
    for seed in range(3):
        hidden, units = hide(state, chain, source(seed))
        assert close(before, functional_call(model, hidden, (x,)))
        back = reveal(hidden, units, chain)
        assert list(back) == list(state)
        assert all(same_bits(back[name], tensor) for name, tensor in state.items())
        assert not any(str(order.tolist()) in repr(units) for order in units.orders)


def test_nearly_every_weight_has_other_bytes_than_in_the_file():
    model, state = made(mnist_cnn, (1, 28, 28))
    hidden, _ = hide(state, couplings(model, torch.randn(8, 1, 28, 28)), source())
    for name, tensor in state.items():
        if tensor.dim() > 1:
            same = hidden[name].view(torch.int32) == tensor.view(torch.int32)
            assert float(same.double().mean()) < 0.06, name


def test_factors_are_powers_of_two_and_only_where_nothing_is_rounded():
    model, state = made(mlp, (6,))
    chain = couplings(model, torch.randn(8, 6))
    drawn = [Units.draw(chain, source(seed)).factors for seed in range(40)]
    assert {len(set(factor.tolist())) for factors in drawn for factor in factors} == {1}
    assert {float(factors[1][0]) for factors in drawn} == {0.25, 0.5, 1.0, 2.0, 4.0}
    state["4.weight"][0] = 1e-45  # half of it is nothing
    for seed in range(8):
        hidden, units = hide(state, chain, source(seed))
        assert bool((hidden["4.weight"][0] == 1e-45 / units.factors[1][0]).all())


def test_ranges_hold_the_hidden_form_as_tightly_as_the_plain_one():
    model, state = made(mlp, (6,))
    hidden, _ = hide(state, couplings(model, torch.randn(8, 6)), source())
    for name, tensor in state.items():
        # Of each tensor the same share of its range is used: one factor for all of it.
        plain, other = (
            t.abs().sort().values.view(-1) for t in (tensor.view(-1), hidden[name].view(-1))
        )
        assert torch.equal(plain / plain[-1], other / other[-1]), name


def test_a_state_that_changes_while_it_is_hidden_is_told(monkeypatch):
    model, state = made(mlp, (6,))
    chain = couplings(model, torch.randn(8, 6))
    monkeypatch.setattr("g2d.protect.layout._shown", lambda state, *_: dict(state))
    with pytest.raises(CheckpointError, match="changed while"):
        hide(state, chain, source())


def test_orders_are_drawn_evenly():
    model, _ = made(mlp, (6,))
    chain, draw = couplings(model, torch.randn(8, 6)), source()
    first = [int(Units.draw(chain, draw).orders[0][0]) for _ in range(900)]
    assert sorted(set(first)) == list(range(9))
    assert max(first.count(unit) for unit in range(9)) < 150


def test_places_do_not_overlap_and_small_tensors_lie_anywhere():
    sizes, draw, hits = [64, 1600, 1, 300_000, 400], source(), 0
    for _ in range(300):
        starts, size = places(sizes, draw)
        ends = [start + taken for start, taken in zip(starts, sizes, strict=True)]
        spans = sorted(zip(starts, ends, strict=True))
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert all(start % 64 == 0 for start in starts)
        assert spans[-1][1] <= size <= sum(sizes) + (4 << 20) + 64 * len(sizes)
        hits += starts[1] < 1600  # where a file has it
    assert hits < 15
    large = [100 << 20, 8]
    assert places(large, draw)[1] <= sum(large) + (32 << 20) + 128


@pytest.mark.parametrize("factory", [states.Attention, states.Tied, states.Mixed, normed])
def test_moved_tensors_keep_their_values_and_lie_in_one_block(factory):
    torch.manual_seed(0)
    model = factory().eval().requires_grad_(False)
    state, watch = whole_state(model), MemoryWatch(model)
    count = len(move(model, source()))
    assert watch.check() == []
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    moved = [t for t in tensors if t.untyped_storage().nbytes() > 1 << 20]
    assert len(moved) == count == len(tensors)
    assert len({t.untyped_storage().data_ptr() for t in moved}) == 1
    assert all(same_bits(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_what_shares_its_memory_stays_where_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    model[1].weight.data = model[0].weight.data.t()
    before = model[0].weight.data_ptr()
    assert len(move(model, source())) == 2  # the biases
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr() == before


def built(factory, shape, seed: int = 0, **more):
    model, state = made(factory, shape, seed)
    told: list[str] = []
    inputs = random_inputs(shape, torch.float32)
    snapshot = build_snapshot(
        7, model, state, **{"probe": inputs, "warn": told.append} | more
    )  # fmt: skip
    return snapshot, model, state, told


@pytest.mark.parametrize(("factory", "shape"), CHAINS)
def test_two_loads_differ_in_bytes_and_agree_in_logits(factory, shape):
    first, one, state, told = built(factory, shape)
    second, other, _, _ = built(factory, shape)
    assert (first.layout, second.layout, told) == ("secret", "secret", [])
    x = torch.rand(20, *shape)
    assert close(first.predict(x), second.predict(x))
    weights = [name for name, tensor in state.items() if tensor.dim() > 1]
    for there in (other.state_dict(), state):  # one of eight units may come out in the same order
        same = [n for n in weights if torch.equal(one.state_dict()[n], there[n])]
        assert len(same) <= 1, same
    plain, kept, _, _ = built(factory, shape, probe=None)
    assert plain.layout == "plain"
    assert close(first.predict(x), plain.predict(x))
    assert all(same_bits(tensor, state[n]) for n, tensor in kept.state_dict().items())


def test_the_hidden_form_is_what_is_watched_and_held_in_ranges():
    snapshot, model, _, _ = built(digits_cnn, (1, 8, 8))
    x = torch.rand(4, 1, 8, 8)
    sound, weight = snapshot.predict(x), model[7].weight
    assert snapshot.check() == []
    weight.view(torch.int32).view(-1)[5] ^= 1 << 30
    assert snapshot.check() == ["7.weight"]
    assert bool(snapshot.predict(x).isfinite().all())
    assert float((snapshot.predict(x) - sound).abs().max()) < 100


def test_what_was_verified_is_compared_before_it_is_hidden(monkeypatch):
    def damaged(self, state):
        found = nn.Module.load_state_dict(self, state)
        self[0].bias[0] /= 2
        return found

    monkeypatch.setattr(nn.Sequential, "load_state_dict", damaged, raising=False)
    monkeypatch.setattr("g2d.protect.snapshots.conceal", lambda *_: pytest.fail("hidden"))
    with pytest.raises(VaultError, match=r"changed while it was loaded: \['0.bias'\]"):
        built(digits_cnn, (1, 8, 8))


class Residual(nn.Module):
    """Read off its names it is a plain chain; its shortcut makes it none."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(x + torch.relu(self.inner(x)))


@pytest.mark.parametrize("factory", [Residual, states.Tied, states.Attention])
def test_without_a_chain_units_stay_in_order_and_the_status_says_so(factory):
    snapshot, model, state, told = built(factory, (6,))
    assert (snapshot.layout, told) == ("secret places, no chain", [])
    assert snapshot.check() == []
    assert all(same_bits(tensor, state[n]) for n, tensor in model.state_dict().items())


def test_where_logits_would_differ_units_stay_in_order_and_it_is_told(monkeypatch):
    monkeypatch.setattr("g2d.protect.layout.CLOSE", -1.0)
    model, state = made(mlp, (6,))
    found = conceal(model, state, torch.rand(16, 6), source())
    assert found.layout == "secret places, logits differ"
    assert "differ beyond rounding" in found.failed
    assert all(same_bits(tensor, state[n]) for n, tensor in model.state_dict().items())


def test_a_model_that_does_not_answer_the_probe_is_served_and_it_is_told():
    snapshot, _, _, told = built(mlp, (6,), probe=torch.rand(3, 5))
    assert snapshot.layout == "secret places, not tried"
    assert len(told) == 1
    assert "generation 7 is served with its units in plain order" in told[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_hidden_or_served_in_order_but_never_otherwise(dtype):
    torch.manual_seed(0)
    model = mlp().to(dtype).eval().requires_grad_(False)
    state, probe = whole_state(model), random_inputs((6,), dtype)
    before = model(probe)
    snapshot = build_snapshot(1, model, state, probe=probe)
    assert snapshot.layout in ("secret", "secret places, logits differ", "secret places, no chain")
    if dtype == torch.float64:
        assert snapshot.layout == "secret"
    assert close(before.double(), snapshot.predict(probe).double())


def test_inputs_to_try_a_model_on_are_of_its_form():
    x = random_inputs((1, 4), torch.float64)
    assert (x.shape, x.dtype) == ((16, 1, 4), torch.float64)
    assert float(x.abs().max()) > 100
    assert 0 <= float(x[:4].min()) <= float(x[:4].max()) <= 1
    assert random_inputs((3, 64, 64), torch.float32).shape == (4, 3, 64, 64)
    ids = random_inputs((6,), torch.int64, 20)
    assert (ids.dtype, int(ids.max()) < 20, int(ids.min()) >= 0) == (torch.int64, True, True)
    assert torch.equal(ids, random_inputs((6,), torch.int64, 20))
    with pytest.raises(SettingsError, match="'secret' or 'plain'"):
        is_secret("secrte")


def test_subnormal_weights_are_hidden_where_arithmetic_makes_them_zero():
    x = random_inputs((6,), torch.float32)
    try:
        for seed in range(3):
            model, state = made(mlp, (6,), seed)
            state["4.weight"].view(torch.int32)[0, 0] = 1000
            assert torch.set_flush_denormal(True)
            snapshot = build_snapshot(7, model, state, probe=x)
            assert (snapshot.layout, snapshot.check()) == ("secret", [])
            assert 1000 in model[4].weight.view(torch.int32)[0].tolist()
    finally:
        torch.set_flush_denormal(False)


def test_units_that_cannot_be_undone_are_served_in_order_while_the_state_is_sound(monkeypatch):
    monkeypatch.setattr("g2d.protect.layout._shown", lambda state, *_: dict(state))
    snapshot, model, state, told = built(mlp, (6,))
    assert snapshot.layout == "secret places, not undone"
    assert "cannot be undone" in told[0]
    assert all(same_bits(tensor, state[n]) for n, tensor in model.state_dict().items())


def test_a_state_that_changes_while_it_is_hidden_is_not_served(monkeypatch):
    def damages(state, *_):
        state["0.bias"][0] += 1
        raise CheckpointError("it cannot be undone")

    monkeypatch.setattr("g2d.protect.layout.hide", damages)
    with pytest.raises(VaultError, match=r"changed while it was loaded: \['0.bias'\]"):
        built(mlp, (6,))


def last(factory, shape):
    model, state = made(factory, shape)
    return model.to(memory_format=torch.channels_last), state


def test_kernels_of_channels_last_are_moved_and_keep_their_strides():
    model, state = last(normed, (1, 8, 8))
    strides = [tensor.stride() for tensor in model.parameters()]
    snapshot = build_snapshot(7, model, state, probe=random_inputs((1, 8, 8), torch.float32))
    assert (snapshot.layout, snapshot.check()) == ("secret", [])
    assert [tensor.stride() for tensor in model.parameters()] == strides
    assert len({t.untyped_storage().data_ptr() for t in model.parameters()}) == 1


def test_the_status_counts_tensors_that_stay_where_they_are():
    model, state = made(mlp, (6,))
    model[2].weight.data = torch.zeros(100)[:72].view(8, 9)  # memory of somebody else's
    snapshot = build_snapshot(7, model, state, probe=random_inputs((6,), torch.float32))
    assert snapshot.layout == "secret, 5 of 6 tensors moved"
    assert snapshot.check() == []


class Keeping(nn.Module):
    """Computes with a view that it made when it was built."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.t = self.a.weight.detach().t()

    def forward(self, x):
        return self.c(torch.relu(self.b(x @ self.t)))


def test_what_a_model_reads_through_a_kept_view_stays_watched():
    snapshot, model, _, told = built(Keeping, (6,))
    assert (snapshot.layout, told) == ("secret places, no chain, 5 of 6 tensors moved", [])
    assert snapshot.check() == []
    model.t[0, 0] = 1e30
    assert snapshot.check() == ["a.weight"]
    assert bool((snapshot.predict(torch.ones(2, 6)).abs() < 1e6).all())


class Counting(Keeping):
    """Never answers twice alike."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls


def test_where_no_probe_can_tell_nothing_is_tried():
    snapshot, model, state, told = built(Counting, (6,))
    assert (snapshot.layout, told) == ("secret places, not tried", [])
    assert torch.equal(model.t, state["a.weight"].t())
    snapshot, model, state, _ = built(Keeping, (6,), probe=torch.full((2, 6), torch.nan))
    assert snapshot.layout == "secret places, not tried"
    assert torch.equal(model.t, state["a.weight"].t())


@pytest.mark.parametrize("factory", [mlp, states.Tied])
def test_a_saved_state_of_a_hidden_model_holds_its_tensors_alone(factory):
    _, model, state, _ = built(factory, (6,))
    for source, prefix in ((model, ""), (nn.Sequential(model), "0.")):
        kept = source.state_dict()
        assert all(same_bits(kept[prefix + n], t) for n, t in model.state_dict().items())
        assert max(t.untyped_storage().nbytes() for t in kept.values()) < 1000
        places = {t.data_ptr() for t in kept.values()}
        assert len(places) == len({t.data_ptr() for t in model.state_dict(keep_vars=True).values()})
        saved = io.BytesIO()
        torch.save(kept, saved)
        assert saved.tell() < 10_000
    part = next(model.children()).state_dict()
    assert max(t.untyped_storage().nbytes() for t in part.values()) < 1000
    assert model.state_dict(keep_vars=True).keys() == state.keys()
    assert all(t is model.get_parameter(n) for n, t in model.state_dict(keep_vars=True).items()
               if isinstance(t, nn.Parameter))  # fmt: skip
    other = {n: torch.full_like(t, 2) for n, t in state.items()}
    model.load_state_dict(other)
    assert all(bool((t == 2).all()) for t in model.parameters())
