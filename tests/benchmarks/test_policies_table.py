"""The table of serving policies pools all seeds' images, and Blacklight is what its paper says."""

import numpy as np
import pytest

pytest.importorskip("psutil")

from benchmarks.monitoring import policies_tables
from benchmarks.monitoring.blacklight import Blacklight
from benchmarks.monitoring.policies import brief, flags
from g2d.redteam.policies.detection import Alarms
from g2d.redteam.scoring import share


def rate(successes, n):
    found = share(successes, n)
    return {"value": found.value, "low": found.low, "high": found.high, "n": n}


def search(first, replayed):
    finds = sum(number > 0 for number in first)
    return [
        {"metric": "ASR", "status": "ok", "value": rate(finds, len(first)),
         "extra": {"first": first}},
        {"metric": "again", "status": "ok", "value": rate(finds, finds),
         "extra": {"later_any": rate(finds, finds)}},
        {"metric": "flips", "status": "ok", "value": rate(replayed, finds),
         "extra": {"replayed_next": rate(0, finds)}},
    ]  # fmt: skip


def test_searches_of_all_seeds_are_compared_image_by_image():
    seeds = [
        {"clock, never, scores": search([3, 9, 0, 0], 2),
         "clock, sticky, scores": search([0, 9, 0, 0], 0)},
        {"clock, never, scores": search([0, 7], 1), "clock, sticky, scores": search([0, 7], 1)},
    ]  # fmt: skip
    made = {what: (target, reached) for what, target, reached in policies_tables.lines(seeds)}
    assert made["Square that knows the clock: never"][1].startswith("50.0 (")
    target, reached = made["Square that knows the clock: sticky"]
    assert target == "≤ never rotating, minus the interval"
    assert reached.startswith("33.3 (")
    assert "never rotating 50.0, difference -16.7 (" in reached
    replays = made["a find replayed on other clients, at once: sticky"]
    assert replays == ("≤ 7 with its interval", replays[1])
    assert replays[1].startswith("50.0 (")
    assert made["a find replayed on other clients, after the next rotation: sticky"][1][:3] == "0.0"
    assert not any("global" in what or "vote" in what for what in made), "nobody measured those"


def test_votes_say_whether_they_are_ahead():
    row = {
        "kind": "policy-vote-union", "value": rate(1, 4),
        "extra": {"one_network": rate(2, 4), "flips": [1, 0, 0, 0], "flips_alone": [1, 0.5, 0.5, 0],
                  "forward_passes": 3},
    }  # fmt: skip
    ((what, target, reached),) = policies_tables.lines([{"vote, vote-3, scores": [row]}])
    assert what == "vote-3, union"
    assert "≥ 5 points" in target
    assert reached.startswith("25.0; one network 50.0, difference of all images -25.0 (")
    assert reached.endswith("3 forward passes an answer")


def test_detections_of_all_seeds_are_counted_together():
    row = {"before": rate(3, 4), "unseen": rate(1, 5), "never": rate(1, 5), "median": 30.0, "n": 5,
           "false_alarms": 0, "honest": 500}  # fmt: skip
    name = "detected, ours, square"
    ((what, target, reached),) = policies_tables.lines([{name: row}, {name: row}])
    assert (what, target) == ("seen before success, plain Square: ours", "≥ 95")
    assert reached.startswith("75.0 (")
    assert "unseen successes 2 of 10; median query 30; false alarms 0 of 1,000" in reached
    assert brief(row) == "seen before 75.0 %"


def test_nothing_committed_makes_no_table(monkeypatch, tmp_path):
    monkeypatch.setattr(policies_tables, "RESULTS", tmp_path)
    assert policies_tables.made() == {}
    assert flags().parse_args([]).seeds == [0, 1, 2]


def test_blacklight_matches_what_differs_in_a_part_and_not_other_images():
    draws, alarms = np.random.default_rng(0), Alarms()
    watch = Blacklight(alarms, (0.0, 1.0), seed=1)
    images = draws.random((20, 1, 28, 28)).astype(np.float32)
    for place, x in enumerate(images):
        watch.observe(x[None], np.zeros((1, 10), np.float32), f"{place}")
    assert alarms.raised == []
    other = images[3].copy()
    other[0, :6, :6] = 1.0
    watch.observe(other[None], np.zeros((1, 10), np.float32), "attacker")
    assert alarms.raised == [("attacker", "query_attack")]
    noise = draws.uniform(-0.2, 0.2, other.shape).astype(np.float32)
    assert not watch.near(np.clip(images[5] + noise, 0, 1), "attacker")
