"""Soups as the sampler: nothing is trained, and everything after the draw is as with diffusion."""

from __future__ import annotations

import shutil

import pytest
import torch

import g2d
from drawing import generator
from g2d.errors import CheckpointError
from g2d.generator import Generator
from g2d.generator.soup_space import SoupSpace
from g2d.weights.checkpoints import pack, unpack, unpack_metadata


@pytest.fixture
def soups(tmp_path, tiny_vault):
    """A vault whose settings name soups, fitted."""
    shutil.copytree(tiny_vault, tmp_path / "soups")
    with g2d.Defence.open(tmp_path / "soups") as defence:
        defence.settings = defence.settings.override(generator__space="soup")
        defence.vault.write_settings(defence.settings.to_toml())
        defence.fit()
    with g2d.Defence.open(tmp_path / "soups") as defence:
        yield defence


def member_vectors(defence):
    """Members' vectors (K, P), and the basin of each."""
    entries = defence.vault.entries("member")
    states = [unpack(defence.vault.read(entry)) for entry in entries]
    encoded = [defence.generator.codec.encode(state).float() for state in states]
    return torch.stack(encoded), [int(entry.info["basin"]) for entry in entries]


def test_a_draw_is_the_mean_of_members_of_one_basin(soups):
    space = soups.generator.space
    assert isinstance(space, SoupSpace)
    vectors, basins = member_vectors(soups)
    means = {b: vectors[[i for i, of in enumerate(basins) if of == b]].mean(0) for b in {*basins}}
    drawn = soups.generator.sample(8, generator(3))
    for v in drawn:  # the tiny vault has two members a basin: a soup is their mean
        assert any(torch.allclose(v, mean, atol=1e-4) for mean in means.values())
    assert len({tuple(v[:3].tolist()) for v in drawn.round(decimals=3)}) == len(means)


def test_basins_of_exposures_are_told_and_the_rested_one_is_drawn(soups):
    vectors, basins = member_vectors(soups)
    space = soups.generator.space
    for v, basin in zip(vectors, basins, strict=True):
        own = [place for place, other in enumerate(basins) if other == basin]
        assert space.mates(v, list(vectors)) == own
    settings = soups.settings.override(
        guidance__resting=True, guidance__polish_steps=0, guidance__latent_steps=0
    ).guidance
    exposure = soups.exposure(1)
    first = basins.index(0)
    shown = type(exposure)(1, vectors[first], exposure.guide, exposure.gate, exposure.gate_clean)
    for seed in range(4):
        v = soups.generator.propose(soups.task, [shown], settings, generator(seed))
        assert space.mates(v, [vectors[first]]) == []


def test_generations_are_drawn_guided_and_pass_the_gates(soups):
    (made,) = soups.generate(1, seed=0)
    assert made.manifest["origin"] == "generated"


def test_its_file_comes_back_and_a_broken_one_is_refused(soups):
    data = soups.generator.to_bytes()
    again = Generator.from_bytes(data, "soup")
    assert again.to_bytes() == data
    assert torch.equal(again.sample(2, generator(3)), soups.generator.sample(2, generator(3)))
    tensors = unpack(data)
    del tensors["soup.members"]
    broken = pack(tensors, unpack_metadata(data))
    with pytest.raises(CheckpointError, match="lacks members of its soups; run `g2d fit` again"):
        Generator.from_bytes(broken, "soup")
