"""Soups are told where to begin; of a basin that is retired only its mean is kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from g2d.generator.latent_space import FitPlan, Population
from g2d.generator.soup_space import SoupSpace
from g2d.settings import AutoencoderSettings, DiffusionSettings, GuidanceSettings
from small_models import source

NUMBERS = [0, 0, 0, 1, 1, 1, 1000, 1000]


@pytest.fixture
def vectors():
    """Members near three centres in R^12."""
    centres = torch.eye(12)[[0, 0, 0, 1, 1, 1, 2, 2]] * 10
    return centres + 0.1 * torch.randn(centres.shape, generator=source(0))


def space_of(vectors, retired=()):
    population = Population(
        task=None, codec=None, vectors=vectors, basins=torch.tensor(NUMBERS), base=vectors[0]
    )  # type: ignore[arg-type]
    plan = FitPlan(AutoencoderSettings(), DiffusionSettings(), 0, retired=retired)
    return SoupSpace.fit(population, plan)


def drawn(space, begin=(), exposed=(), resting=True):
    """The basins of some guided draws."""
    objective = SimpleNamespace(
        settings=GuidanceSettings(resting=resting, particles=3), begin=begin, exposed=exposed,
        best=lambda *_: 0,
    )  # fmt: skip
    return {
        space.basin_of(space.decode(space.draw_guided(objective, source(seed))))
        for seed in range(24)
    }


def test_a_candidate_begins_where_it_is_told(vectors):
    space = space_of(vectors)
    assert space.basins() == (0, 1, 1000)
    assert drawn(space, begin=(1000,)) == {1000}
    assert drawn(space, begin=(0, 1000)) == {0, 1000}
    assert drawn(space, begin=(77,), resting=False) == {0, 1, 1000}  # one that it does not know


def test_without_a_word_the_draws_are_those_of_before(vectors):
    space = space_of(vectors)
    z = space.draw(5, source(3))
    known = torch.tensor([0, 1, 1000])
    again = source(3)
    of = known[torch.randint(3, (5,), generator=again)]
    means = torch.stack([space._soup(int(basin), again) for basin in of])
    assert torch.equal(z, means)
    assert "soup.retired" not in space.tensors()


def test_nothing_begins_in_a_retired_basin_and_what_is_of_it_is_told(vectors):
    space = space_of(vectors, retired=(0,))
    assert space.basins() == (1, 1000)
    assert len(space.members) == 6  # a mean in the place of three members
    assert drawn(space) == drawn(space, begin=(0,)) == {1, 1000}
    assert space.basin_of(vectors[1]) == 0
    assert space.mates(vectors[0], [vectors[2], vectors[4]]) == [0]
    again = SoupSpace.restore(space.codec, space.tensors(), {})
    assert again.basins() == (1, 1000)
    assert torch.equal(again.draw(4, source(1)), space.draw(4, source(1)))
