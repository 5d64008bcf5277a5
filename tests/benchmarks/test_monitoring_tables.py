"""Tables of monitors say what the JSON says, of whatever parts and files are there."""

import json

import pytest
import torch

pytest.importorskip("psutil")

from benchmarks.monitoring import alarms, detection, drift, refresh, tables
from g2d.tasks.splits import Split


def still(alarms_, asked):
    return {
        kind: {"requests": asked, "alarms": alarms_, "microseconds": 30.0} for kind in drift.KINDS
    }


def cells(text):
    lines = [line.strip("| ").split(" | ") for line in text.split("\n") if line.startswith("|")]
    return {line[0].strip(): line[-1].strip() for line in lines[2:]}


def test_without_json_every_table_says_so(tmp_path):
    made = tables.made(tmp_path)
    assert all("not measured yet" in text for text in made.values())
    assert len(made) == 6


def test_drift_tells_of_single_parts_and_of_several_files(tmp_path):
    blur = {"blur": {kind: [400, None, 1200] for kind in drift.KINDS}}
    for seed, found in ((0, blur), (1, {"still": still(0, 1_000_000)})):
        text = json.dumps({"sizes": {"task": "mnist"}, "seeds": {str(seed): found}})
        (tmp_path / f"drift-seed{seed}.json").write_text(text)
    text = tables.made(tmp_path)["monitoring-drift"]
    made = cells(text)
    assert made["blur: ours"] == "1 of 3; in the median after 1,200"
    # Three over the count: what no event in so many says (the rule of three).
    told = made["alarms where nothing moved: ours"]
    assert told == "0 in 1,000,000; at most 3.00 in 1,000,000"
    assert "Seeds 0, 1 of 3" in text
    assert "label shift: ours" not in made
    text = json.dumps({"sizes": {"task": "digits"}, "seeds": {}})
    (tmp_path / "drift-other.json").write_text(text)
    with pytest.raises(SystemExit, match="other flags"):
        tables.made(tmp_path)


def attack(won, early, before):
    rival = {"before": 0, "before_later": 0, "undetected_wins": won, "median": None}
    return {
        "lanes": 10, "won": won, "early": early,
        "queries": {"before": before, "before_later": before, "undetected_wins": 0, "median": 3.0},
        "blacklight": rival,
    }  # fmt: skip


def test_accounts_of_all_seeds_are_counted_together():
    seeds = {str(n): {"attacks": {"square": attack(5, 1, 9)}} for n in range(2)}
    made = {what: told for what, _, told in detection.rows({"seeds": seeds})}
    assert made["square: seen before success, %"].startswith("90.0 (69.9–97.2); Blacklight 0.0")
    assert made["square: of the others seen before success, %"].startswith("100.0 (")
    assert not any("OARS" in what or "benign" in what for what in made)
    stream = {"alarms": 1, "inputs": 1000, "flagged": 7, "asked": 10, "microseconds": 100.0,
              "microseconds_blacklight": 900.0}  # fmt: skip
    made = detection.rows({"seeds": {"0": {"benign": {"plain": stream}}}})
    assert made[0][2] == "1 in 1,000 inputs; Blacklight flags 7 of 10"
    assert made[1][2] == "1 in 1,000 inputs; at most 4,743.86 in 1,000,000"
    assert made[2][2] == "100 µs; Blacklight 900 µs"


def test_alarms_stand_beside_the_schedule():
    one = {"rotations": 13, "sent": 10_000, "told": 1}
    runs = {"calm": {"rotations": 12, "sent": 0, "told": 0}, "one account": one}
    assert alarms.rows({"runs": {"one account": one}}) == []
    assert alarms.rows({"runs": runs})[1][1:] == ["12 ± 1", "13; 1 of 10,000 alarms told"]


def test_a_refresh_that_was_refused_although_clean_is_told_and_what_poison_does(tmp_path):
    def scores(value):
        return {"shifted": [value], "former": [0.9], "trigger": [0.03], "cpu": 100.0}

    refused = {"refused": ["spectral signature"], "failed": "", "cpu": 15.0}
    found = {
        "before": scores(0.7), "full": scores(0.9), "after": scores(0.88) | refused,
        "flips": {"refused": "...", "by": ["labels agree", "spectral signature"]},
        "trigger": {"refused": "", "trigger": 0.25, "shifted": 0.8, "former": 0.9},
    }  # fmt: skip
    text = json.dumps({"sizes": {"task": "nsl-kdd"}, "seeds": {"0": found}})
    (tmp_path / "refresh-nsl-kdd.json").write_text(text)
    made = cells(tables.made(tmp_path)["monitoring-refresh"])
    assert made["nsl-kdd: share won of what a full retraining wins, %"] == "90.0"
    assert made["nsl-kdd: its CPU time, % of the retraining's"] == "15.0"
    told = made["nsl-kdd: refused although clean, and accepted by hand"]
    assert told == "1 of 1 (spectral signature)"
    told = made["nsl-kdd: refused: 10 % of labels flipped"]
    assert told == "1 of 1 (labels agree, spectral signature)"
    assert made["nsl-kdd: refused: a trigger in 10 %"] == "0 of 1"
    told = made["nsl-kdd: a trigger in 10 %, taken all the same: the trigger wins, %"]
    assert told == "25.0; without it 3.0"
    taken = "taken all the same: accuracy on shifted test data, %"
    assert made[f"nsl-kdd: a trigger in 10 %, {taken}"] == "80.0; without it 88.0"
    assert f"nsl-kdd: 10 % of labels flipped, {taken}" not in made
    assert not any("5 %" in what for what in made)
    assert "nsl-kdd: accuracy on former test data, refreshed, %" in made
    how = refresh.Refresh(None)
    how.tell("labels agree: 0.8")
    how.tell("REFUSED: spectral signature: 1689 of 3712 records")
    how.tell("REFUSED: labels agree with the live networks on 3 of 9 (33 %, least: class 1)")
    how.tell("REFUSED: backdoor: the smallest trigger of class 1 is smaller")
    assert refresh.refused_by(how) == ["spectral signature", "labels agree", "backdoor"]


def test_poison_is_a_share_of_the_records_and_leaves_the_others_alone():
    source = torch.Generator().manual_seed(0)
    new = Split(torch.rand(200, 3, generator=source), torch.arange(200) % 5)
    like = torch.tensor([[4.0, 900.0, 1.0], [2.0, 1.0, 1.0]])
    few = refresh.triggered(new, like, refresh.POISONED["trigger_few"], 0)
    marked = few.x[:, 0] == 4.0  # the column's own largest, not the table's
    assert int(marked.sum()) == 10
    assert (few.y[marked] == 0).all()
    assert torch.equal(few.x[~marked], new.x[~marked])
    assert torch.equal(few.y[~marked], new.y[~marked])
    assert int((refresh.flipped(new, 5, 0).y != new.y).sum()) == 20
    image = refresh.stamped(torch.zeros(2, 1, 18, 18), torch.ones(1, 1, 18, 18))
    assert image.sum() == 8
    assert image[:, :, -2:, -2:].min() == 1
