"""What stays, what moves and what is tied, from the population to what is served."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call

import g2d
import states
from g2d.core.engine import SerialEngine
from g2d.defence.gates import CandidateView
from g2d.defence.gates.accuracy import finite_gate
from g2d.defence.gates.distance import distance_gate
from g2d.errors import CheckpointError, PopulationError, SettingsError, TaskError
from g2d.generator import Generator
from g2d.redteam.controls import FittedMembers, noised, soups
from g2d.redteam.threats.basins.knowledge import Basin
from g2d.settings import GateSettings
from g2d.training.basins import midpoint
from g2d.training.layouts import layout_of
from g2d.vault.verify import verify
from g2d.weights.checkpoints import pack, unpack
from g2d.weights.codec import Codec
from g2d.weights.layout import Layout, same_bits
from states import STAY, Attention, Extra, Mixed, Tied, Untensored, defended, parametrized
from states import task as task_of

X = torch.rand(8, 6, generator=torch.Generator().manual_seed(1))


def state_of(factory, seed=0):
    torch.manual_seed(seed)
    return factory().state_dict()


def layout(factory):
    return Layout.of(factory(), X)


def networks(defence):
    """Every network of a vault by name: early checkpoints, members, generations."""
    found = {
        f"{kind} {entry.index}": unpack(defence.vault.read(entry))
        for kind in ("early", "member")
        for entry in defence.vault.entries(kind)
    }
    return found | {
        f"generation {number}": defence.generation(number).state
        for number in defence.vault.exposures()
    }


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    with defended(tmp_path_factory.mktemp("attention") / "vault", Attention) as defence:
        yield defence


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    with defended(tmp_path_factory.mktemp("tied") / "vault", Tied) as defence:
        yield defence


# --- what stays ----------------------------------------------------------------------------------


def test_frozen_parameters_and_constants_stay_bit_for_bit_and_the_rest_moves(attention):
    base = unpack(attention.vault.read(attention.vault.entry("base")))
    assert len(networks(attention)) >= 6
    for name, state in networks(attention).items():
        moved = {key for key in base if not same_bits(base[key], state[key])}
        assert not moved & set(STAY), name
        if name != "generation 1":  # that is the base
            assert {"head.weight", "norm.running_mean", "norm.running_var"} <= moved, name


def test_seeds_take_what_stays_from_the_base(tmp_path):
    changed = {"population__recipe": "seeds", "population__base_steps": 5}
    with defended(tmp_path / "vault", Attention, **changed) as defence:
        base = unpack(defence.vault.read(defence.vault.entry("base")))
        for name, state in networks(defence).items():
            assert all(same_bits(base[key], state[key]) for key in STAY), name


def test_what_is_infinite_by_design_is_served_and_verified(attention):
    snapshot = attention.snapshot()
    x = attention.task.splits.test.x
    live = attention.generation().state
    expected = functional_call(Attention().eval(), dict(live), (x,))
    torch.testing.assert_close(snapshot.predict(x), expected)
    assert snapshot.check() == []
    assert [p for p in verify(attention.vault.path, None) if p.kind == "tensors"] == []


def test_controls_leave_what_stays_alone(attention):
    members = FittedMembers.of(attention)
    made = [*soups(members, 2, 0), *noised(members, 2, 0), midpoint(*members.states[:2])]
    for state in made:
        assert all(same_bits(members.states[0][key], state[key]) for key in STAY)
        assert bool(torch.isfinite(state["head.weight"]).all())
    models = [attention.task.model(0).eval()] * 2
    basin = Basin.of(attention.task, models, members.states[:2])
    assert bool(torch.isfinite(basin.soup(torch.Generator().manual_seed(0))(X)).all())


def test_an_infinity_that_is_not_by_design_is_refused(attention):
    state = dict(attention.generation().state)
    state["head.bias"] = torch.full((3,), torch.inf)
    results = {r.gate: r for r in attention.judge(state, [], [])}
    assert not results["finite"].passed
    from g2d.errors import VaultError
    from g2d.protect.snapshots import build_snapshot

    with pytest.raises(VaultError, match=r"'head.bias' holds NaN or infinity"):
        build_snapshot(9, Attention(), state)


# --- scopes --------------------------------------------------------------------------------------


def test_the_default_scope_is_what_moves():
    assert layout(Attention).in_scope() == {
        "head.weight", "head.bias", "norm.weight", "norm.bias", "norm.running_mean",
        "norm.running_var",
    }  # fmt: skip
    assert layout(Attention).stays() == set(STAY)
    assert layout(Attention).carried == {"norm.num_batches_tracked"}


def test_only_its_exact_name_brings_what_stays_into_the_scope():
    found = layout(Attention)
    assert found.in_scope(["*"]) == found.in_scope()
    assert found.in_scope(["head.*", "backbone.bias"]) == {
        "head.weight", "head.bias", "backbone.bias",
    }  # fmt: skip


def test_spectral_norms_vectors_move_though_they_rest_on_fresh_weights():
    moving = layout(parametrized).moving
    assert {"2.parametrizations.weight.0._u", "2.parametrizations.weight.0._v"} <= moving


@pytest.mark.parametrize(
    ("factory", "scope", "words"),
    [
        (Attention, ("tail.*",), r"'tail.\*' matches no tensor. The model has: mean, table"),
        (Attention, ("backbone.*",), "matches only what stays: frozen parameters"),
        (Attention, ("m*",), "matches only what stays"),
        (Attention, ("mask",), "holds integers, infinity or extra state"),
        (Attention, ("order",), "holds integers, infinity or extra state"),
        (Attention, ("norm.running_*",), "holds buffers alone"),
        (lambda: nn.Linear(6, 3).requires_grad_(False), (), "all are frozen"),
    ],
)
def test_a_scope_of_nothing_is_one_line_before_anything_is_made(tmp_path, factory, scope, words):
    with pytest.raises((SettingsError, TaskError), match=words) as caught:
        defended(tmp_path / "vault", factory, autoencoder__scope=scope)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "vault").exists()


def test_a_named_frozen_layer_trains_and_a_scope_leaves_the_rest(tmp_path):
    changed = {"autoencoder__scope": ("backbone.weight",)}
    with defended(tmp_path / "vault", Attention, **changed) as defence:
        base = unpack(defence.vault.read(defence.vault.entry("base")))
        for name, state in list(networks(defence).items()):
            moved = {key for key in base if not same_bits(base[key], state[key])}
            assert moved == (set() if name == "generation 1" else {"backbone.weight"})


def test_the_distance_gate_counts_what_is_in_scope(attention):
    base = attention.generation(1).state
    state = dict(base) | {"head.weight": base["head.weight"] * 1.5}
    view = CandidateView(
        state, attention.task.model(0).eval(), attention.reference, [], {1: base}, (),
        GateSettings(), frozenset(["head.weight"]),
    )  # fmt: skip
    assert distance_gate(view).value == pytest.approx(0.5)
    everything = dataclasses.replace(view, scope=frozenset(["head.weight", "table"]))
    assert distance_gate(everything).value < 0.4
    assert finite_gate(view).passed
    (judged,) = [r for r in attention.judge(state, [], [1]) if r.gate == "distance"]
    large = dict(state) | {"table": state["table"] * 1e4}
    (same,) = [r for r in attention.judge(large, [], [1]) if r.gate == "distance"]
    assert judged.value == same.value > 0


def test_hidden_units_outside_the_scope_are_not_permuted():
    from g2d.generator import hidden_units

    task = task_of(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    assert len(hidden_units(task)) == 1
    assert hidden_units(task, layout_of(task).in_scope(["2.*"])) == ()


def test_adopted_members_that_differ_in_what_stays_are_refused():
    task = task_of(Attention)
    s = states.settings()
    with pytest.raises(PopulationError, match=r"'backbone.bias'.*stays"):
        Generator.fit(
            task, [state_of(Attention, 0), state_of(Attention, 1)], [0, 0], s.autoencoder,
            s.diffusion, seed=0,
        )  # fmt: skip


# --- ties, types and extra state -----------------------------------------------------------------


def test_what_is_tied_stays_one_tensor_to_the_end(tied):
    pairs = [("embed.weight", "unembed.weight")]
    pairs += [(f"norm.{n}", f"again.{n}") for n in ("weight", "bias", "running_mean")]
    for name, state in networks(tied).items():
        for one, other in pairs:
            assert same_bits(state[one], state[other]), (name, one)
    parameters = sum(p.numel() for p in Tied().parameters())
    assert tied.generator.codec.size == parameters + 2 * 6  # and running statistics
    again = Generator.from_bytes(tied.generator.to_bytes())
    assert again.codec.ties == tied.generator.codec.ties != {}
    snapshot = tied.snapshot()
    assert snapshot.check() == []
    x = tied.task.splits.test.x
    torch.testing.assert_close(snapshot.predict(x), tied.generation().model()(x))
    (found,) = [r for r in tied.judge(tied.generation().state, [], [1]) if r.gate == "distance"]
    assert found.value > 0


@pytest.mark.parametrize("factory", [Mixed, Tied, Attention, Extra, parametrized])
def test_every_kind_of_entry_packs_and_passes_the_codec(factory):
    first, second = state_of(factory, 0), state_of(factory, 1)
    codec = Codec.fit([first], layout=layout(factory))
    again = Codec.restore(codec.describe(), codec.rest, codec.ties)
    for state in (first, second):
        read = unpack(pack(state))
        assert read.keys() == state.keys()
        assert all(same_bits(read[name], tensor) for name, tensor in state.items())
        back = again.decode(codec.encode(state))
        assert back.keys() == state.keys()
        for name in codec.ties | {spec.name: "" for spec in codec.specs}:
            assert same_bits(back[name], state[name]), name
    factory().load_state_dict(again.decode(codec.encode(second)))


@pytest.mark.parametrize("factory", [Mixed, parametrized, Extra])
def test_odd_kinds_go_the_whole_way(tmp_path, factory):
    with defended(tmp_path / "vault", factory) as defence:
        state, x = defence.generation().state, defence.task.splits.test.x
        members = [unpack(defence.vault.read(e)) for e in defence.vault.entries("member")]
        for name in layout(factory).parameters:
            assert not torch.equal(state[name], members[0][name]), name
            assert state[name].dtype == members[0][name].dtype
        assert defence.snapshot().check() == []
        model = factory()
        model.load_state_dict(dict(state))
        torch.testing.assert_close(model.eval()(x), defence.snapshot().predict(x))
        for soup in (*soups(FittedMembers.of(defence), 1, 0), midpoint(*members[:2])):
            assert not any(torch.equal(soup[n], members[0][n]) for n in layout(factory).parameters)


def test_extra_state_that_is_no_tensor_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(TaskError, match=r"'_extra_state' .* dict, no tensor"):
        g2d.Defence.build(
            task_of(Untensored), tmp_path / "v", states.settings(), engine=SerialEngine()
        )
    assert not (tmp_path / "v").exists()
    with pytest.raises(CheckpointError, match="no tensor"):
        pack(Untensored().state_dict())


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, dtype=torch.complex128), torch.eye(2).to_sparse()]
)
def test_a_type_that_no_file_keeps_is_one_line(tensor):
    with pytest.raises(CheckpointError, match=r"'odd' is .*cannot keep; expected a dense tensor"):
        pack({"odd": tensor})
