"""A basin that was exposed rests: the next candidate starts in the one exposed farthest back."""

from __future__ import annotations

import torch

from g2d.settings import Settings
from g2d.weights.checkpoints import unpack


def vectors(defence):
    """The vectors of two members of each of two basins."""
    found = {}
    for entry in defence.vault.entries("member"):
        v = defence.generator.codec.encode(unpack(defence.vault.read(entry)))
        found.setdefault(entry.info["basin"], []).append(v)
    return found[0], found[1]


def test_the_basin_that_was_exposed_last_is_left_alone(defence):
    space, (zero, one) = defence.generator.space, vectors(defence)
    z = space.encode(torch.stack([*zero, *one]).float())
    in_zero, in_one = [True, True, False, False], [False, False, True, True]
    assert space._rested(z, [zero[0]]).tolist() == in_one
    assert space._rested(z, [zero[0], one[0]]).tolist() == in_zero
    assert space._rested(z, [zero[0], one[0], zero[1]]).tolist() == in_one
    assert sum(space._rested(z, []).tolist()) == 2  # either of two that nobody has seen
    assert space._rested(z[:2], [zero[0]]).tolist() == [True, True]  # there is no other


def test_generations_take_turns_in_basins_where_they_rest(defence):
    settings = defence.settings.override(guidance__resting=True).guidance
    space, basins = defence.generator.space, []
    exposures = []
    for seed in range(4):
        source = torch.Generator().manual_seed(seed)
        v = defence.generator.propose(defence.task, exposures, settings, source)
        basins.append(int(space.autoencoder.nearest_basin(space.autoencoder.span.project(v)[None])))
        exposure = defence.exposure(1)
        exposures.append(
            type(exposure)(seed, v, exposure.guide, exposure.gate, exposure.gate_clean)
        )
    assert basins[0] != basins[1]
    assert basins[2:] == basins[:2]


def test_resting_is_off_and_leaves_no_trace_in_settings_digests():
    assert not Settings().guidance.resting
    assert "resting" not in Settings().to_toml(former=True)
