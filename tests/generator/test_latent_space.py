"""A latent space of the user's own, as docs/extending.md shows it: one class, one setting."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch

import g2d
from drawing import generator
from g2d.errors import CheckpointError, SettingsError
from g2d.generator import Generator
from g2d.generator.latent_space import DEFAULT, find_space
from places import example

KIND = "gaussian:GaussianSpace"


@pytest.fixture
def own(tmp_path, monkeypatch, tiny_vault):
    """A vault whose settings name the example's space, fitted."""
    (tmp_path / "gaussian.py").write_text(example("A latent space"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "gaussian", raising=False)
    shutil.copytree(tiny_vault, tmp_path / "own")
    with g2d.Defence.open(tmp_path / "own") as defence:
        defence.settings = defence.settings.override(generator__space=KIND)
        defence.vault.write_settings(defence.settings.to_toml())
        defence.fit()
    with g2d.Defence.open(tmp_path / "own") as defence:
        yield defence


def test_the_example_is_fitted_and_proposes(own):
    space = own.generator.space
    assert type(space).__name__ == "GaussianSpace"
    z = space.draw(3, generator())
    torch.testing.assert_close(space.encode(space.decode(z)), z, atol=1e-3, rtol=1e-3)
    recent = [own.exposure(1)]
    free = own.settings.override(
        guidance__reverse_steps=0, guidance__latent_steps=0, guidance__polish_steps=0
    )
    drawn, guided = (
        own.generator.propose(own.task, recent, settings.guidance, generator(1))
        for settings in (free, own.settings)
    )
    assert drawn.shape == guided.shape == (own.generator.codec.size,)
    rates = {}
    for name, v in (("drawn", drawn), ("guided", guided)):
        results = own.judge(own.generator.to_state(v), recent, [1])
        rates[name] = {result.gate: result.value for result in results}
    assert rates["guided"]["stale_asr"] < rates["drawn"]["stale_asr"]


def test_its_guided_draw_is_the_best_of_its_particles(own):
    from g2d.generator.guidance import Objective

    settings = own.settings.override(guidance__particles=6).guidance
    objective = Objective(own.task, own.generator.codec, [], settings, generator(2))
    space = own.generator.space
    z = space.draw_guided(objective, generator(3))
    drawn = space.draw(6, generator(3))
    again = Objective(own.task, own.generator.codec, [], settings, generator(2))
    assert torch.equal(z, drawn[again.best(space.decode, drawn)])


def test_its_file_is_read_only_under_the_name_in_the_settings(own):
    data = own.generator.to_bytes()
    again = Generator.from_bytes(data, KIND)
    assert again.to_bytes() == data
    assert torch.equal(again.sample(2, generator(3)), own.generator.sample(2, generator(3)))
    with pytest.raises(CheckpointError, match="run `g2d fit` again"):
        Generator.from_bytes(data)  # nothing is imported because a file says so


def test_another_space_is_fitted_anew_and_the_first_one_too(own):
    mine = own.vault.entry("generator").info["identity"]
    own.settings = own.settings.override(generator__space=DEFAULT)
    assert type(own.fit().space).__name__ == "DiffusionSpace"
    assert own.vault.entry("generator").info["identity"] != mine


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flow", "built in: diffusion"),
        ("nowhere:Space", "no module 'nowhere'"),
        ("g2d.generator:Generator", "inherits from"),
    ],
)
def test_a_space_that_cannot_be_found_is_explained(name, said):
    with pytest.raises(SettingsError, match=said):
        find_space(name)
