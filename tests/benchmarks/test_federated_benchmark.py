"""The table of aggregation goes on row by row, and says what the JSON says."""

from __future__ import annotations

import json
import random

import pytest

from benchmarks.federated import aggregation, deciding


def row(**found):
    return {"cpu_seconds": 1.0, "skipped": 0, "refused_answers": {}, **found}


@pytest.fixture
def stub(monkeypatch):
    """Bases are not trained: what would be measured, by rule."""
    asked = []

    def measured(task, given, seed, case):
        asked.append(case)
        _, f, attack, rule = case
        if rule == "bulyan" and f == 8:
            return {"refused": "n >= 35"}
        reached = 0.9 - (0.01 * f if rule != "mean" else 0.1 * f)
        found = row(accuracy=reached, gate=reached)
        return found | ({"asr": 0.25} if attack == "backdoor" else {})

    monkeypatch.setattr(aggregation, "measured", measured)
    monkeypatch.setattr(aggregation, "commit", lambda: "one")
    monkeypatch.setattr(
        aggregation, "controls", lambda *_: {"server alone": {"accuracy": 0.8}, "local only": None}
    )
    return asked


def test_rows_are_kept_and_told_beside_the_controls(stub, tmp_path, capsys, monkeypatch):
    words = ["--out", str(tmp_path), "--attacks", "alie", "backdoor", "--alphas", "0.5", "0",
             "--rules", "mean", "median", "bulyan"]  # fmt: skip
    aggregation.main([*words, "--fs", "0", "4"])
    before = len(stub)
    assert before == 2 * 3 * (1 + 2)
    aggregation.main([*words, "--fs", "0", "4", "8"])
    assert len(stub) - before == 2 * 3 * 2  # what was there is not measured again
    told = capsys.readouterr().out
    assert "| 0.5 | 8 | backdoor | 10.0 (ASR 25.0) | 82.0 (ASR 25.0) | refused |" in told
    assert "| even | – | server alone | 80.0 |" in told
    assert "86.0 % (median), -4.0 points to honest averaging" in told
    assert "82.0 % (median), +2.0 points to server alone; of 2 of 6 attacks alone" in told
    kept = json.loads((tmp_path / "federated-digits-seed0.json").read_text())
    assert len(kept["rows"]) == len(stub)
    with pytest.raises(SystemExit, match="give the same flags"):
        aggregation.main([*words, "--rounds", "3"])
    monkeypatch.setattr(aggregation, "commit", lambda: "another")
    with pytest.raises(SystemExit, match="another"):  # nor are rows of two commits one table
        aggregation.main(words)


def test_which_rule_is_told_is_decided_off_the_test_split():
    given = aggregation.flags().parse_args(
        ["--attacks", "alie", "ipm", "--rules", "mean", "median", "multi-krum", "centred-clipping"]
    )
    seen = {"median": (0.80, 0.85), "multi-krum": (0.90, 0.70), "mean": (0.95, 0.95),
            "centred-clipping": (0.75, 0.80)}  # fmt: skip
    rows = {
        aggregation.name_of(0.5, 4, attack, rule): row(accuracy=accuracy, gate=gate)
        for rule, (accuracy, gate) in seen.items()
        for attack in given.attacks
    }
    rows[aggregation.name_of(0.5, 0, "none", "mean")] = row(accuracy=0.95, gate=0.95)
    [first, *_] = aggregation.targets([{"rows": rows, "controls": {}}], given)
    assert "80.0 % (median), -15.0 points" in str(first[2])
    assert "; centred-clipping (default) 75.0 %, -20.0" in str(first[2])  # known before any attack
    assert str(first[2]).endswith("; chosen on the same seeds")
    rows |= {  # a seed of its own chose another one, worse as it is on these
        aggregation.name_of(0.5, 4, attack, "multi-krum"): row(accuracy=0.70, gate=0.90)
        for attack in given.attacks
    }
    chosen = {"alpha 0.5 | f 4": "multi-krum"}
    [first, *_] = aggregation.targets([{"rows": rows, "controls": {}, "chosen": chosen}], given)
    assert "70.0 % (multi-krum), -25.0 points" in str(first[2])
    assert "same seeds" not in str(first[2])


def test_rows_of_targets_alone_are_asked_for_and_later_runs_add_theirs(stub, tmp_path):
    words = ["--out", str(tmp_path), "--attacks", "alie", "ipm", "--rules", "mean", "median"]
    aggregation.main([*words, "--targets"])
    wanted = {
        (alpha, f, attack, rule)
        for alpha, f in ((0.5, 4), (0.0, 8), (0.5, 8), (0.1, 8))
        for attack in ("alie", "ipm")
        for rule in ("mean", "median")
    }
    assert set(stub) == wanted | {(0.0, 0, "none", "mean"), (0.5, 0, "none", "mean")}
    aggregation.main([*words[:-1], "centred-clipping", "--alphas", "1", "--fs", "2"])
    kept = json.loads((tmp_path / "federated-digits-seed0.json").read_text())
    shown = aggregation.told([kept])
    assert (shown.alphas, shown.fs) == ([0.0, 0.5, 0.1, 1.0], [0, 2, 4, 8])
    assert (shown.attacks, shown.rules) == (["alie", "ipm"], ["mean", "median", "centred-clipping"])
    told = aggregation.table([kept], shown)
    assert "| 1 | 2 | alie | 70.0 | – | 88.0 |" in told
    assert "| 0.5 | 2 |" not in told  # nobody has asked for it
    assert "82.0 % (median), +2.0 points" in str(aggregation.targets([kept], shown)[2][2])


@pytest.mark.parametrize("seed", range(20))
def test_the_chosen_rule_is_that_of_a_whole_search_by_fewer_rows(seed):
    source, rules, attacks = random.Random(seed), "abcde", deciding.ORDER
    gate = {(rule, attack): source.random() for rule in rules for attack in attacks}
    del gate["c", "ipm"]  # refused: no such rule can be taken
    asked = []

    def measure(case):
        asked.append(case)
        found = gate.get((case[3], case[2]))
        return {"refused": "too few"} if found is None else {"gate": found}

    worst = {r: min(gate.get((r, a), -1.0) for a in attacks) for r in rules}
    best = max(rules, key=worst.__getitem__)
    assert deciding.chosen((0.5, 4), rules, attacks, measure) == (best, worst[best])
    assert len(set(asked)) == len(asked) < len(rules) * len(attacks)


def test_no_rule_is_chosen_where_all_refuse():
    assert deciding.chosen((0.5, 8), "ab", ("alie",), lambda _: {"refused": "n"}) is None


def test_targets_are_decided_by_the_chosen_rule_the_default_and_controls(stub, tmp_path, capsys):
    words = ["--out", str(tmp_path), "--decide", "--rules", "mean", "median", "bulyan"]
    aggregation.main(words)
    kept = json.loads((tmp_path / "federated-digits-seed0.json").read_text())
    choice = json.loads((tmp_path / "federated-choice-digits.json").read_text())
    assert kept["chosen"] == {deciding.key_of(cell): "median" for cell in deciding.WANTED}
    assert choice["rows"].keys().isdisjoint(["alpha 0.5 | f 4 | alie | mean"])
    per_cell = 2 * len(deciding.ORDER) + len(deciding.AGAINST_MEAN)
    assert len(kept["rows"]) == 4 * per_cell + len(deciding.HONEST)
    told = capsys.readouterr().out
    assert "86.0 % (median), -4.0 points to honest averaging; centred-clipping (default)" in told
    assert "CPU minutes: seed 0: 1.0" in told  # 58 rows of one second
    before = len(stub)
    aggregation.main(words)
    assert len(stub) == before  # both files go on
    with pytest.raises(SystemExit, match="measure on others"):
        aggregation.main([*words, "--seeds", str(deciding.CHOSEN_ON)])
    kept["chosen"] = {}
    (tmp_path / "federated-digits-seed0.json").write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match="was measured with the rules"):
        aggregation.main(words)
