from __future__ import annotations

import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from g2d.errors import CheckpointError, SettingsError
from g2d.tasks.networks import resnet18
from g2d.weights.checkpoints import check_state, load_checkpoint, pack, unpack, unpack_metadata
from g2d.weights.codec import Codec


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
    model.train()(torch.randn(16, 5))
    return model.to(dtype)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@given(st.integers(0, 1000), st.floats(1e-20, 1e20))
@settings(max_examples=30, deadline=None)
def test_codec_is_an_exact_inverse(seed, magnitude):
    state = {k: v.clone() for k, v in small_model(seed).state_dict().items()}
    state["0.weight"] = state["0.weight"] * magnitude
    codec = Codec.fit([state])
    assert same(codec.decode(codec.encode(state)), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_codec_keeps_every_dtype(dtype):
    state = small_model(dtype=dtype).state_dict()
    codec = Codec.fit([state])
    assert same(codec.decode(codec.encode(state)), dict(state))


def test_codec_of_a_residual_network_with_batch_norm():
    torch.manual_seed(0)
    state = resnet18().state_dict()
    codec = Codec.fit([state])
    assert codec.size == sum(t.numel() for t in state.values() if t.is_floating_point())
    assert same(codec.decode(codec.encode(state)), dict(state))


def test_scope_leaves_the_rest_to_the_reference():
    first, second = (small_model(seed).state_dict() for seed in (0, 1))
    codec = Codec.fit([first], scope=["3.*"])
    decoded = codec.decode(codec.encode(second))
    assert codec.size == 7 * 3 + 3
    assert torch.equal(decoded["3.weight"], second["3.weight"])
    assert torch.equal(decoded["0.weight"], first["0.weight"])
    with pytest.raises(SettingsError, match="matches no tensor"):
        Codec.fit([first], scope=["head.*"])


def test_standardised_parameters_are_of_order_one():
    state = small_model().state_dict()
    v = Codec.fit([state]).encode(state)
    assert 0.3 < float(v.square().mean().sqrt()) < 3


def test_running_variance_stays_positive():
    state = small_model().state_dict()
    codec = Codec.fit([state])
    decoded = codec.decode(-codec.encode(state))
    assert float(decoded["1.running_var"].min()) > 0


def test_gradients_flow_through_tensors():
    model = small_model().eval()
    codec = Codec.fit([model.state_dict()])
    v = codec.encode(model.state_dict()).requires_grad_(True)
    out = torch.func.functional_call(model, codec.tensors(v), (torch.randn(4, 5),))
    out.sum().backward()
    assert v.grad is not None
    assert float(v.grad.abs().sum()) > 0


def test_restore_gives_the_same_codec():
    state = small_model().state_dict()
    codec = Codec.fit([state], scope=["0.*"])
    again = Codec.restore(codec.describe(), codec.rest)
    assert again.specs == codec.specs
    assert torch.equal(again.encode(state), codec.encode(state))


def test_wrong_vector_length_is_refused():
    codec = Codec.fit([small_model().state_dict()])
    with pytest.raises(CheckpointError, match="fits, not"):
        codec.decode(torch.zeros(3))


def test_pack_round_trip_is_deterministic():
    state = small_model().state_dict()
    data = pack(state, {"who": "me"})
    assert data == pack(dict(reversed(list(state.items()))), {"who": "me"})
    assert same(unpack(data), dict(state))
    assert unpack_metadata(data) == {"who": "me"}


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1])
def test_truncated_safetensors_is_refused(cut):
    data = pack(small_model().state_dict())
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        unpack(data[:cut])


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_pickle_that_executes_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"0.weight": Bomb()}))
    torch.save({"0.weight": Bomb()}, tmp_path / "zip.pt")
    for name in ("raw.pt", "zip.pt"):
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_load_checkpoint_forms(tmp_path):
    state = small_model().state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": dict(state), "epoch": 3}, tmp_path / "nested.pth")
    (tmp_path / "s.safetensors").write_bytes(pack(state))
    for name in ("plain.pt", "nested.pth", "s.safetensors"):
        assert same(load_checkpoint(tmp_path / name), dict(state))
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "junk.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("list.pt", "junk.pt", "empty.pt", "absent.pt"):
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / name)


def test_check_state_gives_every_reason():
    reference = small_model().state_dict()
    bad = {k: v.clone() for k, v in reference.items()}
    del bad["0.bias"]
    bad["0.weigth"] = torch.zeros(1)
    bad["3.weight"] = torch.zeros(2, 2)
    bad["3.bias"][0] = float("nan")
    with pytest.raises(CheckpointError) as caught:
        check_state(reference, bad, "member-7.pt")
    text = str(caught.value)
    for part in ("member-7.pt", "'0.bias' is missing", "'0.weigth' is not in", "(2, 2)", "NaN"):
        assert part in text
    check_state(reference, reference, "itself")
