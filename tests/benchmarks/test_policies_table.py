"""The table of serving policies counts the images of all seeds together."""

import json
from argparse import Namespace

import pytest

pytest.importorskip("psutil")

from benchmarks.monitoring import detection, drift, policies_tables
from benchmarks.monitoring.policies import SIZES, Policies, brief, flags
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
    assert ", of single seeds 25.0 to 50.0; never" in reached
    assert "never rotating 50.0, difference -16.7 (" in reached
    replays = made["a find replayed on other clients, at once: sticky"]
    assert replays == ("≤ 7 with its interval", replays[1])
    assert replays[1].startswith("50.0 (")
    assert made["a find replayed on other clients, after the next rotation: sticky"][1][:3] == "0.0"
    assert not any("global" in what or "vote" in what for what in made), "nobody measured those"


def test_a_seed_is_compared_with_itself_alone():
    seeds = [
        {"clock, never, scores": search([1, 1], 0)},
        {"clock, never, scores": search([0, 0], 0), "clock, global, scores": search([0, 0], 0)},
        {"clock, keyed, scores": search([0, 0], 0)},
    ]  # fmt: skip
    assert "never rotating 0.0, difference +0.0" in policies_tables.won(seeds, "clock", "global")
    assert "never" not in policies_tables.won(seeds, "clock", "keyed"), "its own is not there"


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    given = flags().parse_args(["--out", str(tmp_path), "--images", "10"])
    sizes = {name: getattr(given, name) for name in SIZES}
    kept = tmp_path / "policies-mnist-seed0.json"
    kept.write_text(json.dumps({"seed": 0, "rows": {}, "sizes": sizes | {"images": 100}}))
    with pytest.raises(SystemExit, match="give the same flags"):
        Policies(given, 0)


@pytest.mark.parametrize("module", [detection, drift])
def test_results_of_other_sizes_are_not_taken_for_these(module, tmp_path):
    out = tmp_path / "it.json"
    out.write_text(json.dumps({"task": "digits", "seeds": {"0": {}}, "sizes": {"task": "digits"}}))
    given = Namespace(
        task="digits", data="", seeds=[0], out=out, images=1, oars=1, warm=1, queries=1, requests=1,
        rival=1, copied=1, benign=1, usual=1, worlds=1,
    )  # fmt: skip
    with pytest.raises(SystemExit, match="give the same flags"):
        module.measure(given, tmp_path)


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
