"""The table of serving policies counts the images of all seeds together."""

import pytest

pytest.importorskip("psutil")

from benchmarks.monitoring import policies_tables
from benchmarks.monitoring.policies import brief, flags
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


def test_who_is_seen_is_counted_over_all_seeds():
    row = search([0, 40], 0)
    row[0]["extra"] |= {"seen_before": rate(1, 2), "seen_at": 30.0}
    name = "clock, sticky-watched, scores"
    made = {what: reached for what, _, reached in policies_tables.lines([{name: row}] * 2)}
    told = made["Square that knows the clock: seen before success"]
    assert told.startswith("50.0 (")
    assert told.endswith("of 4 seen or successful; half of the seen by query 30")
    assert brief(row).startswith("ASR 50.0, ")


def test_nothing_committed_makes_no_table(monkeypatch, tmp_path):
    monkeypatch.setattr(policies_tables, "RESULTS", tmp_path)
    assert policies_tables.made() == {}
    assert flags().parse_args([]).seeds == [0, 1, 2]
