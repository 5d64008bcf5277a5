from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import g2d
from g2d.attacks.bitflip import (
    BITS,
    FLOAT_BITS,
    Flip,
    bit_steps,
    code_flips,
    draw_places,
    flip_float,
    flipped,
    float_flips,
    in_ranges,
    progressive_bit_search,
    quantise,
    random_flips,
)
from g2d.core.shares import wilson
from g2d.errors import SettingsError
from g2d.redteam.context import AttackContext, Chain, Network, RunSpec
from g2d.redteam.rows import Status
from g2d.redteam.threats.bitflips import layout as served
from g2d.redteam.threats.bitflips import scoring as flipbench
from g2d.redteam.threats.bitflips import threat as bitflips
from g2d.tasks.inference import accuracy
from g2d.tasks.splits import Split
from g2d.training.loop import Batches, clean_step, train
from g2d.weights.checkpoints import digest, pack


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained(digits: g2d.Task) -> nn.Module:
    model = digits.model(0)
    batches = Batches(digits, digits.splits.train, 64, generator())
    return train(model, clean_step(digits, batches), steps=150, rate=5e-3)


def test_quantised_weights_are_within_half_a_scale_and_come_back_exactly(trained):
    state = trained.state_dict()
    stored = quantise(state)
    assert set(stored.codes) == {n for n, t in state.items() if t.dim() >= 2}
    for name, code in stored.codes.items():
        assert code.dtype == torch.int8
        assert int(code.abs().max()) == 127
        error = (stored.weight(name) - state[name]).abs().max()
        assert error <= stored.scales[name] * 0.5001
    again = quantise(stored.state())
    assert all(torch.equal(again.codes[n], stored.codes[n]) for n in stored.codes)
    assert all(torch.equal(stored.state()[n], t) for n, t in state.items() if t.dim() < 2)


def test_a_tensor_of_zeros_is_stored_and_a_model_without_matrices_is_refused():
    stored = quantise({"w": torch.zeros(2, 3)})
    assert torch.equal(stored.state()["w"], torch.zeros(2, 3))
    with pytest.raises(SettingsError, match="weight matrices"):
        quantise({"b": torch.ones(3)})


def test_bit_steps_are_what_flips_do_for_every_code_and_bit():
    codes = torch.arange(-128, 128).to(torch.int8)
    stored = dataclasses.replace(
        quantise({"w": torch.ones(16, 16)}), codes={"w": codes.view(16, 16)}
    )
    steps = bit_steps(codes)
    for bit in range(BITS):
        flips = [Flip("w", i, bit) for i in range(256)]
        moved = flipped(stored, flips).codes["w"].view(-1).long() - codes.long()
        assert torch.equal(moved, steps[:, bit])
        twice = flipped(flipped(stored, flips), flips)
        assert torch.equal(twice.codes["w"], stored.codes["w"])
    assert int(steps[:, 7].abs().min()) == 128


@pytest.mark.parametrize(
    "flip", [Flip("v", 0, 0), Flip("w", 4, 0), Flip("w", 0, 8), Flip("w", -1, 0)]
)
def test_a_flip_that_is_not_there_is_refused(flip):
    with pytest.raises(SettingsError):
        flipped(quantise({"w": torch.ones(2, 2)}), [flip])


def test_the_first_flip_is_the_best_of_all_for_a_linear_loss_gain():
    # One linear layer whose loss is nearly linear in the weights: the search must find the flip
    # that brute force finds.
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    attack = Split(0.01 * torch.rand(8, 3), torch.zeros(8, dtype=torch.long))
    stored = quantise(model.state_dict())
    (found,) = progressive_bit_search(model, [stored], attack, most=1)

    def loss(flip: Flip) -> float:
        logits = functional_call(model, flipped(stored, [flip]).state(), (attack.x,))
        return float(F.cross_entropy(logits, attack.y))

    every = [Flip("weight", i, bit) for i in range(6) for bit in range(BITS)]
    assert loss(found) == pytest.approx(max(loss(flip) for flip in every), rel=1e-4)


def test_the_search_ruins_a_network_where_random_flips_do_not(digits, trained):
    stored, split = quantise(trained.state_dict()), digits.splits.gate
    attack = digits.splits.guide.sample(128, generator())
    flips = progressive_bit_search(trained, [stored], attack, most=15)
    assert len(set(flips)) == len(flips) <= 15

    def after(these: list[Flip]) -> float:
        state = flipped(stored, these).state()
        return accuracy(lambda x: functional_call(trained, state, (x,)), split)

    clean = after([])
    assert clean > 0.85
    assert after(flips) < clean - 0.4
    assert after(random_flips(stored, len(flips), generator())) > clean - 0.2


def test_the_search_stops_where_it_has_enough_and_knows_several_networks(digits, trained):
    stored = quantise(trained.state_dict())
    attack = digits.splits.guide.sample(64, generator())
    assert progressive_bit_search(trained, [stored], attack, enough=1.0) == []
    one = progressive_bit_search(trained, [stored], attack, most=3)
    assert progressive_bit_search(trained, [stored, stored], attack, most=3) == one
    assert len(progressive_bit_search(trained, [stored], attack, most=5, width=2)) == 5


def test_random_flips_cover_all_tensors_and_repeat_with_the_seed():
    stored = quantise({"a": torch.ones(2, 2), "b": torch.ones(3, 2)})
    every = random_flips(stored, 99, generator(), 7)
    assert {(f.tensor, f.index) for f in every} == {("a", i) for i in range(4)} | {
        ("b", i) for i in range(6)
    }
    assert {f.bit for f in every} == {7}
    assert random_flips(stored, 5, generator(3)) == random_flips(stored, 5, generator(3))


def test_ranges_undo_a_flip_that_leaves_them_and_nothing_else():
    stored = quantise({"w": torch.tensor([[1.0, 0.5], [0.1, 0.05]])})
    hit = flipped(stored, [Flip("w", 2, 7)])
    kept = in_ranges(hit, stored)["w"]
    limit = stored.weight("w")[1].abs().max()
    assert float(kept[1, 0]) == -float(limit)
    assert torch.equal(kept[0], stored.weight("w")[0])
    assert torch.equal(in_ranges(stored, stored)["w"], stored.weight("w"))


RAW = st.integers(-(2**31), 2**31 - 1)  # every float32, NaNs and subnormals too


@given(raw=st.lists(RAW, min_size=1, max_size=12), index=st.integers(0, 11), bit=st.integers(0, 31))
def test_a_float_flip_changes_one_bit_and_the_same_flip_again_gives_the_bytes_back(raw, index, bit):
    index %= len(raw)
    tensor = torch.tensor(raw, dtype=torch.int32).view(torch.float32)
    hit = flip_float(tensor, index, bit)
    moved = (hit.view(torch.int32).long() ^ torch.tensor(raw)) & 0xFFFFFFFF
    assert moved.tolist() == [(1 << bit) * (i == index) for i in range(len(raw))]
    again = flip_float(hit, index, bit)
    assert again.view(torch.int32).tolist() == tensor.view(torch.int32).tolist() == raw


@given(value=st.floats(width=32, allow_nan=False))
def test_float_flips_are_what_the_bytes_say_bit_by_bit(value):
    (raw,) = struct.unpack("<I", struct.pack("<f", value))
    found = float_flips(torch.tensor([value]))
    assert found.shape == (1, FLOAT_BITS)
    expected = [raw ^ 1 << bit for bit in range(FLOAT_BITS)]
    assert [int(v) & 0xFFFFFFFF for v in found[0].view(torch.int32)] == expected
    if 2**-120 < abs(value) < 1:
        assert abs(float(found[0, 30])) > 2  # the exponent's top bit: times 2^128
        assert float(found[0, 31]) == -value


def test_a_float_flip_keeps_the_shape_and_order_of_tensors_that_are_not_contiguous():
    tensor = torch.arange(6.0).view(2, 3).t()
    hit = flip_float(tensor, 1, 31)
    assert hit.shape == (3, 2)
    assert float(hit[0, 1]) == -3.0
    assert float(tensor[0, 1]) == 3.0


@pytest.mark.parametrize(("index", "bit"), [(4, 0), (-1, 0), (0, 32), (0, -1)])
def test_a_float_flip_that_is_not_there_is_refused(index, bit):
    with pytest.raises(SettingsError, match="outside the 4 weights of 32 bits"):
        flip_float(torch.ones(2, 2), index, bit)
    with pytest.raises(SettingsError, match="float64"):
        flip_float(torch.ones(4, dtype=torch.float64), 0, 0)


def test_code_flips_are_what_flipped_makes_of_every_code():
    codes = torch.arange(-128, 128).to(torch.int8)
    stored = dataclasses.replace(
        quantise({"w": torch.ones(16, 16)}), codes={"w": codes.view(16, 16)}, scales={"w": 0.3}
    )
    found = code_flips(codes, 0.3)
    for bit in range(BITS):
        hit = flipped(stored, [Flip("w", i, bit) for i in range(256)])
        assert torch.equal(hit.weight("w").view(-1), found[:, bit])


def test_places_are_drawn_once_each_and_evenly_over_all_weights():
    sizes = {"a": 30, "b": 1, "c": 69}
    every = draw_places(sizes, 1000, generator())
    assert sorted(every) == sorted((n, i) for n, size in sizes.items() for i in range(size))
    source, drawn = generator(1), [0, 0, 0]
    for _ in range(300):
        for name, _index in draw_places(sizes, 10, source):
            drawn["abc".index(name)] += 1
    assert drawn == pytest.approx([900, 30, 2070], abs=80)


@pytest.fixture(scope="module")
def spec(tmp_path_factory, digits: g2d.Task, trained: nn.Module) -> RunSpec:
    folder = tmp_path_factory.mktemp("bits")
    networks = []
    for index in range(3):
        state = dict(trained.state_dict())
        state["0.weight"] = state["0.weight"] + 0.02 * index
        path = Path(folder, f"{index}.safetensors")
        path.write_bytes(pack(state))
        networks.append(Network(str(path), digest(path.read_bytes()), str(index)))
    chains = {
        "generated": Chain("generated", tuple(networks), cost=2.5),
        "frozen": Chain("frozen", tuple(networks[:1]), fixed=True),
    }
    return RunSpec(digits, "", g2d.Settings(), chains, n=150, eps=0.1, quick=True)


def test_the_family_tells_found_transferred_hardened_random_and_healed(spec):
    context = AttackContext(spec)
    cases = bitflips.plan(spec)
    assert len({(c.name, c.chain) for c in cases}) == len(cases)
    rows = {(c.name, c.chain): bitflips.run(c, context) for c in cases}
    own, after = rows["search", "frozen"][:2]
    assert "one network: the interval is over images alone" in own.note
    assert own.value == after.value  # the same network: nothing is rotated
    assert own.value is not None
    assert own.value.value > 0.2
    assert own.extra["curve"][0]["flips"] == 0
    assert len(rows["hardened", "generated"]) == 6
    layout = {
        row.kind.removeprefix("bit-flips-layout-"): row for row in rows["layout", "generated"]
    }
    assert list(layout) == ["replica", "replica-plain", "next", "next-plain", "random"]
    assert layout["replica"].value.value < 0.1 < layout["replica-plain"].value.value
    assert layout["replica-plain"].value.value > layout["random"].value.value
    assert layout["replica"].extra["landed"] < 0.2 < layout["random"].extra["landed"]
    (healed,) = rows["healing", "generated"]
    assert healed.value.value < 0.1 < own.value.value
    assert "2.5 CPU s" in healed.note
    for row in (row for found in rows.values() for row in found):
        assert row.status is Status.OK
        assert row.value.low <= row.value.value <= row.value.high
        assert row.metric == "accuracy lost"
        assert row.eps is None
        assert 0 <= row.harm <= 1


def test_one_generation_alone_is_said_not_to_be_measured(spec):
    short = Chain("generated", spec.chains["generated"].networks[:1])
    alone = dataclasses.replace(spec, chains={"generated": short})
    context = AttackContext(alone)
    for case in bitflips.plan(alone):
        rows = bitflips.run(case, context)
        if case.name == "search":
            own, following = rows
            assert own.status is Status.OK
            assert following.status is Status.NOT_MEASURED
            assert following.threat == "the same flips on the next network"
            assert "no next one" in following.note
            continue
        if case.name == "layout":
            told = {row.kind.removeprefix("bit-flips-layout-"): row.status for row in rows}
            assert told.pop("next") is Status.NOT_MEASURED
            assert set(told) == {"replica", "replica-plain", "random"}
            assert set(told.values()) == {Status.OK}
            continue
        expected = Status.OK if case.name == "random" else Status.NOT_MEASURED
        assert {row.status for row in rows} == {expected}


def test_transferred_rows_apply_every_flip_and_tell_the_fewer_beside(spec):
    case = next(c for c in bitflips.plan(spec) if (c.name, c.chain) == ("search", "generated"))
    case = dataclasses.replace(case, options=(("most", 12), ("batch", 128), ("exposed", 1),
                                              ("later", 2)))  # fmt: skip
    rows = bitflips.run(case, AttackContext(spec))
    assert [row.threat for row in rows] == [
        "flips on the network they were found on",
        "the same flips on the next network",
        "the same flips two and more networks later",
    ]
    for row in rows:
        assert row.value.value == row.extra["lost_after_all_flips"]
        assert 0 <= row.extra["lost_after_enough_flips"] <= 1
        assert len(row.extra["networks"]) == row.scored == 1
    assert rows[1].extra["curve"][-1]["flips"] == rows[1].extra["flips_used"][0]
    assert rows[2].extra["networks"][0]["found_on"] == "0"
    assert rows[2].extra["networks"][0]["label"] == "2"


def test_intervals_cover_the_choice_of_networks_and_are_no_narrower_than_wilson():
    generators = [generator(1), generator(1)]
    hits = torch.zeros(2, 1000)
    hits[0, :50], hits[1, :900] = 1, 1
    low, high = flipbench.bootstrap(hits.double(), [["a", "b"]], generators[0])
    assert (low, high) == flipbench.bootstrap(hits.double(), [["a", "b"]], generators[1])
    assert low < 0.06
    assert high > 0.89
    same = torch.zeros(2, 1000, dtype=torch.double)
    same[:, :500] = 1
    low, high = flipbench.bootstrap(same, [["a", "b"]], generator(1))
    assert (low, high) == pytest.approx(wilson(500, 1000), abs=0.005)


def test_rows_of_several_networks_get_wider_intervals_than_images_alone(spec):
    case = next(c for c in bitflips.plan(spec) if (c.name, c.chain) == ("search", "generated"))
    bench = flipbench.Bench(case, AttackContext(spec))
    one, two, three = spec.chains["generated"].networks
    hits = torch.zeros(2, 100, dtype=torch.bool)
    hits[1, :90] = True
    rate = bench.mean("x", [(None, two), (None, three)], hits)
    assert (rate.value, rate.n) == (0.45, 100)
    assert rate.low == 0.0
    assert rate.high > 0.8
    equal = bench.mean("x", [(one, one)] * 2, torch.zeros(2, 100, dtype=torch.bool))
    assert (equal.low, equal.high) == wilson(0, 100)


def test_nothing_is_planned_for_chains_that_are_not_there(spec):
    assert bitflips.plan(dataclasses.replace(spec, chains={})) == []


def test_a_place_in_memory_is_one_weight_or_none():
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float64)}
    block = served._Block(state, {"a": 128, "b": 64})
    assert [block.weight(at) for at in (0, 63, 64, 95, 96, 128, 151, 152, 10**9)] == [
        None, None, ("b", 0), ("b", 3), None, ("a", 0), ("a", 5), None, None,
    ]  # fmt: skip


def test_flips_that_hit_what_is_not_kept_in_8_bits_take_its_sign(trained):
    stored = quantise(trained.state_dict())
    hit = served._damaged(stored, [("0.bias", 2, 3), ("0.weight", 4, 7)])
    assert float(hit.rest["0.bias"][2]) == -float(stored.rest["0.bias"][2]) != 0
    assert int((hit.codes["0.weight"] != stored.codes["0.weight"]).sum()) == 1
    assert torch.equal(stored.rest["0.bias"], trained.state_dict()["0.bias"])
