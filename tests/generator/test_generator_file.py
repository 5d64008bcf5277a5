from __future__ import annotations

import dataclasses

import pytest
import torch

from drawing import generator
from g2d.errors import CheckpointError, PopulationError
from g2d.generator import Generator
from g2d.weights.checkpoints import pack, unpack, unpack_metadata


def test_generator_file_round_trip(defence):
    data = defence.generator.to_bytes()
    again = Generator.from_bytes(data)
    assert again.to_bytes() == data
    assert torch.equal(again.sample(2, generator(3)), defence.generator.sample(2, generator(3)))


def test_a_generator_file_names_its_tensors_as_it_always_did(defence):
    """Files of earlier versions must load, and the same fit must give the same bytes."""
    data = defence.generator.to_bytes()
    names = set(unpack(data))
    old = {"inlet.weight", "inlet.bias", "outlet.weight", "outlet.bias", "nobody"}
    assert {f"diffusion.denoiser.{name}" for name in old} <= names
    assert not any(new in name for name in names for new in ("in_proj", "out_proj", "null_emb"))
    kept = defence.generator.space.diffusion.denoiser
    read = Generator.from_bytes(data).space.diffusion.denoiser
    assert torch.equal(read.in_proj.weight, kept.in_proj.weight)
    assert torch.equal(read.out_proj.bias, kept.out_proj.bias)
    assert torch.equal(read.null_embedding, kept.null_embedding)
    assert sorted(unpack_metadata(data)) == ["autoencoder", "codec", "diffusion", "format"]


def test_foreign_generator_file_is_refused(defence):
    with pytest.raises(CheckpointError, match="run `g2d fit` again"):
        Generator.from_bytes(pack({"x": torch.zeros(1)}, {"format": "other"}))


def test_population_of_one_is_refused(digits, tiny_settings):
    state = digits.model(0).state_dict()
    with pytest.raises(PopulationError, match="at least two"):
        Generator.fit(
            digits, [state], [0], tiny_settings.autoencoder, tiny_settings.diffusion, seed=0
        )


def test_fit_and_proposal_are_the_same_bytes_for_the_same_seed(digits, tiny_settings, defence):
    states = [unpack(defence.vault.read(e)) for e in defence.vault.entries("member")]
    fitted = [
        Generator.fit(
            digits, states, [0, 1, 0, 1], tiny_settings.autoencoder, tiny_settings.diffusion, seed=3
        ).to_bytes()
        for _ in range(2)
    ]
    assert fitted[0] == fitted[1]


def test_members_that_differ_out_of_scope_are_refused(digits, tiny_settings, defence):
    states = [unpack(defence.vault.read(e)) for e in defence.vault.entries("member")]
    settings = dataclasses.replace(tiny_settings.autoencoder, scope=("7.*",))
    with pytest.raises(PopulationError, match="out of scope"):
        Generator.fit(digits, states, [0, 1, 0, 1], settings, tiny_settings.diffusion, seed=0)
