from __future__ import annotations

import dataclasses

import pytest
import torch

from drawing import generator
from g2d.errors import CheckpointError, PopulationError
from g2d.generator import Generator


def test_generator_file_round_trip(defence):
    data = defence.generator.to_bytes()
    again = Generator.from_bytes(data)
    assert again.to_bytes() == data
    assert torch.equal(again.sample(2, generator(3)), defence.generator.sample(2, generator(3)))


def test_foreign_generator_file_is_refused(defence):
    from g2d.weights.checkpoints import pack

    with pytest.raises(CheckpointError, match="run `g2d fit` again"):
        Generator.from_bytes(pack({"x": torch.zeros(1)}, {"format": "other"}))


def test_population_of_one_is_refused(digits, tiny_settings):
    state = digits.model(0).state_dict()
    with pytest.raises(PopulationError, match="at least two"):
        Generator.fit(
            digits, [state], [0], tiny_settings.autoencoder, tiny_settings.diffusion, seed=0
        )


def test_fit_and_proposal_are_the_same_bytes_for_the_same_seed(digits, tiny_settings, defence):
    from g2d.weights.checkpoints import unpack

    states = [unpack(defence.vault.read(e)) for e in defence.vault.entries("member")]
    fitted = [
        Generator.fit(
            digits, states, [0, 1, 0, 1], tiny_settings.autoencoder, tiny_settings.diffusion, seed=3
        ).to_bytes()
        for _ in range(2)
    ]
    assert fitted[0] == fitted[1]


def test_members_that_differ_out_of_scope_are_refused(digits, tiny_settings, defence):
    from g2d.weights.checkpoints import unpack

    states = [unpack(defence.vault.read(e)) for e in defence.vault.entries("member")]
    settings = dataclasses.replace(tiny_settings.autoencoder, scope=("7.*",))
    with pytest.raises(PopulationError, match="out of scope"):
        Generator.fit(digits, states, [0, 1, 0, 1], settings, tiny_settings.diffusion, seed=0)
