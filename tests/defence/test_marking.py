"""Replicas' copies of a generation: what they cost, and that a leaked one names its replica."""

import shutil

import pytest
import torch

import g2d
from commands import succeed
from g2d.defence.tracing import Tracer
from g2d.errors import SettingsError
from g2d.protect.fingerprint import (
    STRENGTHS,
    accuse,
    marked,
    read_marks,
    secret_for,
    secret_of,
    slot_of,
    strength_of,
)
from g2d.protect.watermark import WatermarkKey
from g2d.settings import Settings
from g2d.tasks.inference import accuracy, load_model
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import pack, unpack
from g2d.weights.symmetry import permute
from small_models import source

SECRET = secret_of(WatermarkKey(b"\7" * 32))


@pytest.fixture(scope="module")
def state(rotated_vault):
    with Vault.open(rotated_vault) as vault:
        return unpack(vault.read_generation(2))


def test_copies_differ_by_replica_and_repeat(state):
    one, again, other = (marked(state, SECRET, name, 0.02) for name in ("a", "a", "b"))
    assert pack(one) == pack(again) != pack(other)
    assert one.keys() == state.keys()
    for name, tensor in state.items():
        moved = (one[name] - tensor).square().mean().sqrt() / tensor.square().mean().sqrt()
        assert float(moved) == pytest.approx(0.02 if tensor.dim() > 1 else 0.0, rel=1e-2)
    assert pack(marked(state, SECRET, "a", 0.0)) == pack(state)


def test_what_is_tied_stays_tied_and_what_is_not_finite_stays(state):
    name = next(name for name, tensor in state.items() if tensor.dim() > 1)
    mask = torch.full((2, 2), -torch.inf).triu(1)
    more = {**state, "twin": state[name].clone(), "mask": mask, "counts": torch.ones(2, 2).int()}
    found = marked(more, SECRET, "a", 0.02)
    assert torch.equal(found["twin"], found[name])
    assert not torch.equal(found["twin"], more["twin"])
    assert torch.equal(found["mask"], mask)
    assert torch.equal(found["counts"], more["counts"])


def test_a_copy_names_its_replica_and_an_average_names_all_three(state):
    names = ("a", "b", "c")
    copies = [marked(state, SECRET, name, 0.02) for name in names]
    mean = {name: torch.stack([c[name] for c in copies]).mean(0) for name in state}
    noisy = {n: t + 0.02 * t.std() * torch.randn(t.shape, generator=source(0))
             for n, t in copies[0].items()}  # fmt: skip
    for suspect, guilty in ((noisy, names[:1]), (mean, names), (state, ())):
        code, heard = read_marks(state, suspect, SECRET, 0.02)
        assert {one.slot for one in accuse(code, heard)} == {slot_of(SECRET, n) for n in guilty}
    foreign = secret_of(WatermarkKey(b"\1" * 32))
    assert accuse(*read_marks(state, copies[0], foreign, 0.02)) == []


@pytest.mark.parametrize(
    "mark", [None, 3, {"strength": "0.02"}, {"strength": 7.0}, {"strength": True}, {}]
)
def test_only_a_strength_that_we_measured_is_taken_from_a_manifest(mark):
    assert strength_of({"mark": mark}) == 0.0
    assert strength_of({}) == 0.0
    assert strength_of({"mark": {"strength": STRENGTHS[1]}}) == STRENGTHS[1]


def test_marks_need_a_key():
    assert secret_for(Settings()) == b""
    with pytest.raises(SettingsError, match="name its file as \\[cluster\\] key"):
        secret_for(Settings().override(cluster__fingerprint=True))


def test_a_marked_copy_that_leaks_is_traced_to_its_replica(tiny_vault, tmp_path):
    vault, key = shutil.copytree(tiny_vault, tmp_path / "vault"), tmp_path / "marks.key"
    WatermarkKey(b"\7" * 32).write(key)
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_toml(opened.settings_text).override(
            cluster__fingerprint=True, cluster__key=str(key), cluster__mark_drop=0.05
        )
        opened.write_settings(settings.to_toml())
    with g2d.Defence.open(vault) as defence:
        (made,) = defence.generate(seed=0)
        mark, gate = made.manifest["mark"], defence.task.splits.gate
        assert mark["strength"] in STRENGTHS
        assert mark["accuracy"] - mark["marked"] <= 0.05
        copy = marked(made.state, SECRET, "replica-1", mark["strength"])
        assert mark["accuracy"] - accuracy(load_model(defence.task, copy), gate) <= 0.1
        chain = Tracer(defence)._chain
        orders = [torch.randperm(c.units, generator=source(0)) for c in chain]
        suspect = tmp_path / "found.safetensors"
        suspect.write_bytes(pack(permute(copy, chain, orders)))
    printed = succeed("trace", vault, suspect, "--replica", "replica-1").stdout
    assert "made from generation 2 (p" in printed
    assert f"slot {slot_of(SECRET, 'replica-1')} of generation 2 (replica-1), p = " in printed
    key.unlink()
    lost = succeed("trace", vault, suspect).output  # the generation needs no key, its replica does
    assert "replicas are not told apart: cannot read the watermark key" in " ".join(lost.split())
    assert "made from generation 2 (p" in lost
