"""A leaked copy of a real generation is traced to its number, whatever was done to its units."""

import json
import shutil

import pytest
import torch

import g2d
from commands import fail, succeed
from g2d.defence import tracing
from g2d.defence.tracing import Tracer
from g2d.errors import CheckpointError
from g2d.protect.trace.frame import _balance_many
from g2d.tasks.inference import load_model, predict
from g2d.weights.checkpoints import pack, unpack
from g2d.weights.symmetry import balance, permute, rescale
from small_models import source


@pytest.fixture
def vault(rotated_vault, tmp_path):
    return shutil.copytree(rotated_vault, tmp_path / "vault")


@pytest.fixture
def opened(vault):
    with g2d.Defence.open(vault, write=False) as defence:
        yield defence


@pytest.fixture
def tracer(opened):
    told = []
    made = Tracer(opened, told.append)
    made.told = told
    return made


def weights(defence, number):
    return unpack(defence.vault.read_generation(number))


def disguised(state, chain, seed=0):
    draws = source(seed)
    moved = permute(state, chain, [torch.randperm(c.units, generator=draws) for c in chain])
    return rescale(moved, chain, [torch.rand(c.units, generator=draws) + 0.5 for c in chain])


def test_each_generation_is_named_permuted_and_rescaled(opened, tracer):
    chain, x = tracer._chain, opened.task.splits.gate.x[:50]
    for number in opened.vault.numbers():
        state = weights(opened, number)
        suspect = disguised(state, chain, number)
        same = (predict(load_model(opened.task, s), x) for s in (state, suspect))
        assert torch.allclose(*same, atol=1e-3)
        verdict = tracer.trace({f"module.{name}": t for name, t in suspect.items()})
        assert verdict.generations == (number,), str(verdict)
        assert len(verdict.accused) == 1
        assert verdict.candidates[0].cosine > 0.99
    assert "prefix 'module.' left out" in " ".join(tracer.told)
    assert tracer.closed


def test_members_and_strangers_are_no_generations(opened, tracer):
    for kind in ("member", "early"):
        entry = opened.vault.entries(kind)[-1]
        suspect = disguised(unpack(opened.vault.read(entry)), tracer._chain)
        verdict = tracer.trace(suspect)
        assert verdict.generations == ()
        assert [c.who.number for c in verdict.accused] == [entry.index], str(verdict)
    stranger = tracer.trace(opened.task.model(17).state_dict())
    assert stranger.accused == ()
    assert str(stranger).startswith("no accusation: ")


def test_a_copy_that_was_trained_on_names_its_generation(opened, tracer):
    split, draws = opened.task.splits.train, source(5)
    model = load_model(opened.task, weights(opened, 2)).train().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(40):
        rows = torch.randint(len(split), (64,), generator=draws)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(split.x[rows]), split.y[rows]).backward()
        optimizer.step()
    verdict = tracer.trace(disguised(model.state_dict(), tracer._chain))
    assert verdict.generations in ((2,), ()), str(verdict)
    assert str(verdict.candidates[0].who) == "generation 2", str(verdict)
    drifted = {str(name) for nest in tracer._nests for name in nest.drifts}
    assert "generation 2" in drifted, "what its own drift explains was not taken out"


def test_a_suspect_of_another_shape_is_refused(tracer):
    with pytest.raises(CheckpointError, match=r"the suspect does not fit the model: .*is missing"):
        tracer.trace({"weight": torch.zeros(3)})


def test_weights_that_are_zero_throughout_are_a_line_and_extreme_ones_a_verdict(opened, tracer):
    state = opened.generation().state
    with pytest.raises(CheckpointError, match=r"^found: all weights .* are zero"):
        tracer.trace({name: torch.zeros_like(tensor) for name, tensor in state.items()}, "found")
    first = next(iter(state))
    for change in (torch.ones_like, lambda t: 1e9 * t, lambda t: 1e-9 * t):
        verdict = tracer.trace({name: change(tensor) for name, tensor in state.items()})
        assert all(0 <= c.p <= 1 for c in verdict.candidates)
    tracer.trace({**state, first: torch.zeros_like(state[first])})


def test_without_a_chain_networks_are_compared_as_they_stand(opened, monkeypatch):
    monkeypatch.setattr(tracing, "hidden_units", lambda *_: ())
    told = []
    found = Tracer(opened, told.append)
    assert told == [tracing.UNALIGNED]
    assert found.trace(weights(opened, 2)).generations == (2,)


def test_a_generation_that_cannot_be_read_is_left_out_and_said(vault):
    file = vault / "generations" / "000002" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"xxxx")
    with g2d.Defence.open(vault, write=False) as defence:
        told = []
        tracer = Tracer(defence, told.append)
        assert not tracer.closed
        assert "generation 2 is left out" in told[0]
        assert "1 of the vault's generations keep no weights" in told[1]
        assert {n.number for n in tracer.known if n.kind == "generation"} == {1, 3}


def test_networks_are_balanced_together_as_one_by_one(opened, tracer):
    states = [weights(opened, number) for number in (1, 2)]
    together = _balance_many(states, tracer._names, tracer._chain)
    for place, state in enumerate(states):
        alone = balance(state, tracer._chain)
        for name in tracer._names:
            assert torch.allclose(together[name][place].float(), alone[name], atol=1e-5)


def test_the_command_prints_a_verdict_and_writes_all_candidates(vault, tmp_path):
    suspect, out = tmp_path / "found.safetensors", tmp_path / "trace.json"
    with g2d.Defence.open(vault, write=False) as defence:
        suspect.write_bytes(pack(disguised(weights(defence, 3), Tracer(defence)._chain)))
    printed = succeed("trace", vault, suspect, "--top", 2, "--json", out).stdout
    assert "made from generation 3 (p" in printed
    record = json.loads(out.read_text())
    assert record["generations"] == [3]
    assert len(record["candidates"]) == record["tests"] == 9
    assert record["replicas"] == []
    (tmp_path / "other.safetensors").write_bytes(pack({"weight": torch.zeros(3)}))
    told = fail("trace", vault, tmp_path / "other.safetensors")
    assert "does not fit the model" in told
