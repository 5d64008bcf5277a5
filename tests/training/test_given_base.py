"""A base that the user gives is where basins begin; members far below it are said at once."""

from __future__ import annotations

import pytest
import torch

import g2d
from g2d.core.engine import SerialEngine
from g2d.training import adopt
from g2d.weights.checkpoints import unpack
from small_models import fitted

BRIEF = {
    "population__early_steps": 12, "population__fork_steps": 8, "population__batch": 32,
    "population__pool": 32, "population__pool_steps": 1, "population__members": 3,
    "population__basins": 3, "population__rate": 1e-4, "population__fork_rate": 1e-4,
}  # fmt: skip


@pytest.fixture(scope="module")
def state(digits):
    train = digits.splits.train
    return dict(fitted(digits.model(0), train.x, train.y, 60).state_dict())


def populated(path, settings, state, tell=None):
    with g2d.Defence.create("digits", path, settings) as defence:
        defence.adopt_base(state)
        defence.populate(SerialEngine(), tell=tell)
        return {
            kind: [unpack(defence.vault.read(e)) for e in defence.vault.entries(kind)]
            for kind in ("early", "member")
        }


def distance(one, other):
    return float(sum((one[n] - t).abs().sum() for n, t in other.items())) / float(
        sum(t.abs().sum() for t in other.values())
    )


@pytest.mark.parametrize("recipe", ["repelled", "forks"])
def test_basins_begin_at_a_given_base_and_part(tmp_path, tiny_settings, state, recipe):
    settings = tiny_settings.override(**BRIEF, population__recipe=recipe)
    said: list[str] = []
    made = populated(tmp_path / "v", settings, state, said.append)
    assert len(made["early"]) == 3
    for checkpoint in (*made["early"], *made["member"]):
        assert 0 < distance(checkpoint, state) < 0.1  # at fresh weights it would be above 1
    assert len({tuple(one["7.bias"].tolist()) for one in made["early"]}) == 3
    assert said == []
    again = populated(tmp_path / "w", settings, state)
    assert all(
        torch.equal(tensor, other[name])
        for one, other in zip(made["early"], again["early"], strict=True)
        for name, tensor in one.items()
    )


def test_each_basin_flees_the_base_and_the_basins_before_it(
    tmp_path, tiny_settings, state, monkeypatch
):
    from g2d.training import population

    seen = []
    run = population.run_job

    def noted(job):
        if job.kind == "early":
            seen.append((job.index, job.recipe, len(job.pools)))
        return run(job)

    monkeypatch.setattr(population, "run_job", noted)
    populated(tmp_path / "v", tiny_settings.override(**BRIEF, population__recipe="forks"), state)
    assert seen == [(0, "repelled", 1), (1, "repelled", 2), (2, "repelled", 3)]


def test_a_vault_that_an_earlier_release_began_goes_on_at_fresh_weights(
    tmp_path, tiny_settings, state, monkeypatch
):
    monkeypatch.setattr(adopt, "STARTS", {})
    made = populated(tmp_path / "v", tiny_settings.override(**BRIEF), state, lambda _: None)
    assert all(distance(checkpoint, state) > 0.5 for checkpoint in made["early"])


def test_a_member_far_below_the_base_is_said_at_once(tmp_path, tiny_settings, state):
    ruinous = {"population__rate": 2.0, "population__fork_rate": 2.0, "gates__accuracy_drop": 0.02}
    settings = tiny_settings.override(**BRIEF | ruinous)
    said: list[str] = []
    populated(tmp_path / "v", settings, state, said.append)
    assert len(said) == 2
    assert "member 0 is right on" in said[0]
    assert "0 of 1 new members would pass the accuracy gates so far, of all 3 about 0" in said[0]
    assert "fork_steps" in said[0]
    assert said[1] == (
        "the population is complete: 0 of 3 new members would pass the accuracy gates"
    )
    with pytest.warns(UserWarning, match="would pass") as warned:
        populated(tmp_path / "w", settings, state)
    assert [str(one.message) for one in warned] == said
