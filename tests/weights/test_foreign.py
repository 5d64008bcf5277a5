"""Checkpoints as users have them: names of wrappers, files of other tools, other architectures."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import g2d
import states
from g2d.errors import CheckpointError, PopulationError
from g2d.training.recipes import Teacher
from g2d.weights.checkpoints import find_checkpoints, load_checkpoint, pack, unpack
from g2d.weights.foreign import fit_state
from g2d.weights.layout import same_bits
from states import Attention, Tied, mlp
from states import task as task_of

TIES = {"unembed.weight": "embed.weight"}


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x)


MODEL = {name: tensor.clone() for name, tensor in mlp().state_dict().items()}
OWN = {name: torch.rand(tensor.shape) for name, tensor in MODEL.items()}


def under(prefix, state=OWN):
    return {prefix + name: tensor for name, tensor in state.items()}


def equal(found, wanted=OWN):
    return found.keys() == wanted.keys() and all(same_bits(found[n], wanted[n]) for n in wanted)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "module.model.", "net.backbone.", "student.0.",
     "_orig_mod.module.", "anything_at_all."],
)  # fmt: skip
def test_a_prefix_of_any_name_is_left_out_and_said(prefix):
    found = fit_state(MODEL, under(prefix), "x.pt")
    assert equal(found.state)
    (note,) = found.notes
    assert note.startswith("x.pt: ")
    assert "left out" in note


def test_parts_of_wrappers_are_left_out_anywhere():
    inner = {name.replace(".", "._orig_mod.", 1): tensor for name, tensor in OWN.items()}
    assert equal(fit_state(MODEL, inner, "x").state)
    both = {f"model.{n.replace('.', '._orig_mod.')}": t for n, t in OWN.items()}
    assert equal(fit_state(MODEL, both, "x").state)


def test_a_prefix_that_is_lacking_is_added_and_said():
    found = fit_state(Wrapped().state_dict(), OWN, "bare.pt")
    assert equal(found.state, under("net."))
    assert found.notes == ("bare.pt: prefix 'net.' added",)


def test_names_that_fit_are_left_alone_and_nothing_is_said():
    assert fit_state(MODEL, OWN, "x").notes == ()


def test_extra_and_missing_names_are_both_shown_under_the_prefix():
    state = under("model.")
    del state["model.0.bias"]
    state |= {f"loss.weight{i}": torch.ones(3) for i in range(5)}
    with pytest.raises(CheckpointError) as caught:
        fit_state(MODEL, state, "lightning.ckpt")
    text = str(caught.value)
    for part in (
        "lightning.ckpt (prefix 'model.' left out) does not fit",
        "'0.bias' is missing",
        "'loss.weight0' is not in the model",
        "and 2 more",
    ):
        assert part in text
    assert "model.2" not in text
    assert "\n" not in text


def test_a_model_that_is_there_twice_is_not_chosen_from():
    with pytest.raises(CheckpointError, match=r"2 times \(prefix 'a.' .* or prefix 'b.'"):
        fit_state(MODEL, under("a.") | under("b."), "ema.pt")


def test_another_architecture_of_the_same_names_is_shown_with_both_shapes():
    with pytest.raises(CheckpointError) as caught:
        fit_state(MODEL, mlp(width=5).state_dict(), "other.pt")
    text = str(caught.value)
    assert "'0.weight' has another shape: (5, 6), the model's is (8, 6)" in text
    assert "'2.weight' has another shape: (3, 5), the model's is (3, 8)" in text


def test_of_tied_tensors_one_name_is_enough_and_two_must_agree():
    model = Tied()
    reference, ties = model.state_dict(), TIES | {
        f"again.{n}": f"norm.{n}" for n in model.norm.state_dict()
    }  # fmt: skip
    fewer = {n: torch.ones_like(t) for n, t in reference.items() if n not in ties}
    assert fit_state(reference, fewer, "x", ties).state.keys() == reference.keys()
    fewer["unembed.weight"] = fewer.pop("embed.weight")
    assert fit_state(reference, fewer, "x", ties).state.keys() == reference.keys()
    fewer["embed.weight"] = fewer["unembed.weight"] + 1
    with pytest.raises(CheckpointError, match="one tensor in the model"):
        fit_state(reference, fewer, "x", ties)


def test_infinity_is_taken_where_the_model_has_the_same():
    reference = Attention().state_dict()
    assert fit_state(reference, dict(reference), "x")
    bad = dict(reference) | {"mean": torch.full((6,), torch.inf)}
    with pytest.raises(CheckpointError, match="'mean' holds NaN or infinity"):
        fit_state(reference, bad, "x")


def test_types_are_the_models_and_kinds_must_agree():
    low = {name: tensor.to(torch.bfloat16) for name, tensor in OWN.items()}
    assert {t.dtype for t in fit_state(MODEL, low, "x").state.values()} == {torch.float32}
    odd = OWN | {"0.bias": torch.ones(8, dtype=torch.complex64)}
    with pytest.raises(CheckpointError, match=r"'0.bias' is of another kind: torch.complex64"):
        fit_state(MODEL, odd, "x")


# --- files ---------------------------------------------------------------------------------------


def test_every_usual_file_is_read(tmp_path):
    torch.save({"state_dict": under("model."), "epoch": 3, "hyper_parameters": {"lr": 0.1},
                "optimizer_states": [{"state": {}}]}, tmp_path / "lightning.ckpt")  # fmt: skip
    torch.save({"model_state_dict": OWN, "loss": torch.tensor(0.5)}, tmp_path / "training.pt")
    torch.save({"my_network": OWN, "step": 7}, tmp_path / "own.pth")
    torch.save(OWN, tmp_path / "pytorch_model.bin")
    (tmp_path / "s.safetensors").write_bytes(pack(OWN))
    folder = tmp_path / "hugging-face"
    folder.mkdir()
    save_file(OWN, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    found = find_checkpoints(tmp_path)
    assert len(found) == 6
    for path in found:
        assert equal(fit_state(MODEL, load_checkpoint(path), path.name).state), path.name


def shards(folder, **changed):
    names = sorted(OWN)
    files = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, inside in files.items():
        save_file({name: OWN[name] for name in inside}, folder / file)
    where = {name: file for file, inside in files.items() for name in inside} | changed
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_shards_are_put_together(tmp_path):
    index = shards(tmp_path)
    assert equal(load_checkpoint(tmp_path))
    assert equal(load_checkpoint(index))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"0.bias": "../secret.safetensors"}, "no file beside it: refused"),
        ({"0.bias": "c.safetensors"}, "cannot read the checkpoint"),
        ({"lost": "a.safetensors"}, "looks for 'lost' in a.safetensors, which lacks it"),
    ],
)
def test_a_bad_index_of_shards_is_one_line(tmp_path, changed, words):
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(shards(tmp_path, **changed))


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "model.safetensors.index.json").write_text("[]")
    torch.save({"generator": OWN, "critic": OWN}, tmp_path / "gan.pt")
    torch.save(OWN | {"scaler": {"a": 1}}, tmp_path / "odd.pt")
    torch.save({"state_dict": OWN, "args": argparse.Namespace(a=1)}, tmp_path / "code.ckpt")
    torch.save(mlp(), tmp_path / "whole.pt")
    torch.jit.save(torch.jit.trace(mlp(), torch.rand(1, 6)), tmp_path / "scripted.pt")
    for name, words in {
        "empty": "holds none of model.safetensors",
        "index": "no index of shards",
        "gan.pt": "several state dicts \\('generator', 'critic'\\)",
        "odd.pt": "'scaler' is dict, expected tensors alone",
        "code.ckpt": "not executed and is refused",
        "whole.pt": "not executed and is refused",
        "scripted.pt": "a scripted model, which is code",
    }.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)


# --- the whole way -------------------------------------------------------------------------------


def test_a_base_under_a_prefix_is_adopted_and_what_stays_is_its_own(tmp_path):
    torch.manual_seed(7)
    deployed = Attention().state_dict()
    torch.save({"state_dict": under("model.", deployed)}, tmp_path / "deployed.ckpt")
    said = []
    with g2d.Defence.create(task_of(Attention), tmp_path / "v", states.settings()) as defence:
        defence.adopt_base(load_checkpoint(tmp_path / "deployed.ckpt"), said.append)
        defence.populate(g2d.core.engine.SerialEngine())
        assert said == ["the base: prefix 'model.' left out"]
        for kind in ("base", "early", "member"):
            for entry in defence.vault.entries(kind):
                state = unpack(defence.vault.read(entry))
                assert all(same_bits(state[name], deployed[name]) for name in states.STAY), kind


def test_a_zoo_of_mixed_files_is_adopted(tmp_path):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    torch.save(under("module."), zoo / "a.pt")
    (zoo / "b").mkdir()
    other = {name: tensor + 0.01 for name, tensor in OWN.items()}
    save_file(other, zoo / "b" / "model.safetensors")
    said = []
    with g2d.Defence.create(task_of(mlp), tmp_path / "v", states.settings()) as defence:
        defence.adopt(zoo, say=said.append)
        read = [unpack(defence.vault.read(e)) for e in defence.vault.entries("member")]
    assert said == ["a.pt: prefix 'module.' left out"]
    assert equal(read[0])
    assert equal(read[1], other)
    with (
        g2d.Defence.create(task_of(mlp), tmp_path / "w", states.settings()) as defence,
        pytest.raises(PopulationError, match="at least two"),
    ):
        defence.adopt(tmp_path / "zoo" / "b")


def test_a_teachers_names_are_fitted_too():
    teacher = Teacher(pack(under("module.")), "states:mlp")
    assert equal(teacher.load(task_of(mlp)).state_dict())


def test_a_foreign_tensor_is_not_taken_for_one_that_the_file_has():
    """A file with a loss's class weights was answered "Did you mean '3.weight'?", which it had."""
    reference = {"1.weight": torch.ones(2), "3.weight": torch.ones(2)}
    with pytest.raises(CheckpointError) as caught:
        fit_state(reference, {**reference, "loss.weight": torch.ones(2)}, "mine")
    assert str(caught.value).endswith(
        "tensor 'loss.weight' is not in the model: leave it out of the file"
    )
    renamed = {"1.weight": torch.ones(2), "3.weigth": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"not in the model. Did you mean '3.weight'\?"):
        fit_state(reference, renamed, "mine")
