"""Gates on novelty: a basin that rests, and stale ASR as a share of the candidate's own."""

from __future__ import annotations

import torch
from test_gates import gates_by_name

from g2d.settings import GateSettings
from g2d.weights.checkpoints import unpack


def members(defence):
    """Two members of basin 0, and one of basin 1."""
    found = {}
    for entry in defence.vault.entries("member"):
        found.setdefault(entry.info["basin"], []).append(unpack(defence.vault.read(entry)))
    return found[0][0], found[0][1], found[1][0]


def test_a_candidate_of_a_basin_that_was_just_exposed_is_rejected(defence):
    first, second, other = members(defence)
    settings = GateSettings(basin_rest=2)
    just = gates_by_name(defence, second, settings, exposed=[other, first])["basin"]
    assert (just.passed, just.value) == (False, 1.0)
    assert "generation 2 is of the candidate's basin" in just.reason
    rested = gates_by_name(defence, second, settings, exposed=[first, other])["basin"]
    assert (rested.passed, rested.value) == (True, 2.0)
    fresh = gates_by_name(defence, second, settings, exposed=[other])["basin"]
    assert fresh.passed
    assert "basin" not in gates_by_name(defence, second, exposed=[first])


def test_a_stored_attack_that_works_as_one_made_for_it_is_rejected(defence):
    state = defence.generation().state
    exposures = defence.recent(defence.exposed())
    strict = GateSettings(stale_share=0.5)
    result = gates_by_name(defence, state, strict, exposures=exposures)["stale_share"]
    assert not result.passed
    assert 0.8 < result.value < 1.2  # attacks crafted on this very network
    assert "PGD on the candidate itself" in result.reason
    *_, other = members(defence)
    assert gates_by_name(defence, other, strict, exposures=exposures)["stale_share"].value < 1
    assert "stale_share" not in gates_by_name(defence, state, exposures=exposures)
    assert "stale_share" not in gates_by_name(defence, state, strict)


def test_the_look_at_a_basin_draws_the_same_examples_every_time(defence):
    first, second, _ = members(defence)
    settings = GateSettings(basin_rest=3)
    torch.manual_seed(1)
    one = gates_by_name(defence, second, settings, exposed=[first])["basin"]
    torch.manual_seed(2)
    assert gates_by_name(defence, second, settings, exposed=[first])["basin"] == one
