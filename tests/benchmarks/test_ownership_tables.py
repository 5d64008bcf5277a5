"""Ownership's tables say what the JSON says, or that nothing was measured; DAWN marks answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("psutil")

from benchmarks.ownership import carried, layout, rivals, tables, vaults
from benchmarks.ownership.dawn import Dawn, worth
from benchmarks.ownership.entangled import soft_nearest_neighbour
from g2d.errors import GenerationError
from g2d.protect.watermark import p_value


def cells(text: str) -> dict[str, str]:
    lines = [line.strip("| ").split(" | ") for line in text.split("\n") if line.startswith("|")]
    return {line[0].strip(): line[-1].strip() for line in lines[2:]}


def told(n: int, likely: int, most: int = 100) -> dict:
    return {"n": n, "queries": 100, "likely": likely, "sure": likely, "least": 3, "most": most,
            "least_reserve": 3, "most_of_any_set": most}  # fmt: skip


def carried_of(seed: int) -> dict:
    costs = {"accuracy": [0.98, 0.96 + 0.01 * seed], "stale_last": [0.1]}
    lost = {**costs, "accuracy": [0.98 - 0.01 * (seed == 2), 0.96 + 0.01 * seed]}
    rows = {
        "fresh": told(100, 100), "unmarked": told(100, 0, 21), "independent": told(20, 0, 24),
        "cost, marked": lost, "cost, plain": costs,
        "pruned 50%": told(20, 20) | {"accuracy": 0.95}, "int4": told(20, 19) | {"accuracy": 0.9},
    }  # fmt: skip
    size = {"members": 32, "basins": 3}
    return {"seed": seed, "rows": rows, "sizes": {"count": 100}, "population": size,
            "measured": {"commit": "abc1234"}}  # fmt: skip


def write(folder: Path, name: str, result: dict) -> None:
    (folder / name).write_text(json.dumps(result))


def test_without_json_every_table_says_so(tmp_path):
    made = tables.made(tmp_path)
    assert set(made) == {*tables.TABLES, "ownership-strength"}
    for text in made.values():
        assert "not measured yet" in text


def test_what_is_carried_is_told_of_all_seeds(tmp_path):
    for seed in range(3):
        write(tmp_path, f"ownership-carried-mnist-seed{seed}.json", carried_of(seed))
    text = tables.made(tmp_path)["ownership-carried"]
    made = cells(text)
    assert made["fresh generations at p < 2^-128"] == "300 of 300"
    assert made["most hits without the mark"] == "24 of 100"
    cost = made["accuracy, marked / unmarked"]
    assert cost == "97.33 % / 97.50 %; worst seed -0.50 (-1.48 to +0.48)"
    assert made["int4, at p < 2^-64"] == "57 of 60, accuracy 90.00 %"
    assert "Seeds 0, 1, 2; 32 members in 3 basins, 100 generations; commit abc1234." in text


def test_an_interrupted_run_tells_what_is_there(tmp_path):
    result = carried_of(0)
    for name in ("independent", "cost, plain", "int4"):
        del result["rows"][name]
    write(tmp_path, "ownership-carried-mnist-seed0.json", result)
    text = tables.made(tmp_path)["ownership-carried"]
    made = cells(text)
    assert made["most hits without the mark"] == "21 of 100"
    assert "int4, at p < 2^-64" not in made
    assert "accuracy, marked / unmarked" not in made
    assert "Seed 0 of 3; the others are not measured yet" in text
    assert carried.lines([{}]) == []


def test_a_trace_says_whose_vaults(tmp_path):
    leak = {"seed": 0, "kind": "leak: int4", "named": 1, "wrong": 0, "parts": 1}
    vault = {"seed": 0, "vault": "v", "members": 32, "basins": 3, "generations": 101}
    result = {"run": {"commit": "f00"}, "measured": {"data": "x"}, "cases": [leak], "marks": [],
              "time": {}, "vaults": [vault]}  # fmt: skip
    write(tmp_path, "tracing.json", result)
    text = tables.made(tmp_path)["ownership-tracing"]
    assert cells(text)["leaks attributed"] == "1 of 1"
    assert "32 members in 3 basins, 101 generations; commit f00." in text


def test_canaries_layout_and_verification_are_told(tmp_path):
    seen = dict.fromkeys(("labels", "probabilities of two decimals", "logits"), 0.7)
    kinds = {kind: {"canaries": seen, "random": seen} for kind in ("sign", "exponent", "mantissa")}
    one = {"flips": kinds, "false": {"alarms": 0, "asked": 9}, "cpu_seconds": 1.0}
    write(tmp_path, "canaries.json", {"seeds": {"0": one, "2": one}, "record": {"commit": "c1"}})
    row = {"kind": "bit-flips-layout-next", "value": {"value": 0.004}}
    spent = dict.fromkeys(("load", "answer to 1", "answer to 64"), 1.0)
    layout = {"seed": 1, "commit": "c2", "rows": [row],
              "milliseconds": {"secret": spent, "plain": spent}}  # fmt: skip
    write(tmp_path, "layout-mnist-seed1.json", layout)
    clock = {"cpu": 3.0, "wall": 4.0}
    seed = {"marked": [99], "independent": [[11, 9]], "keys": 10, "own_keys": 2, "accepted": 0,
            "most": 22, "most_own": 20, "seconds": [clock], "torch": clock}  # fmt: skip
    result = {"commit": "c3", "measured": {"task": "mnist"}, "seeds": {"0": seed}}
    write(tmp_path, "ownership-verification.json", result)
    made = tables.made(tmp_path)
    text = made["ownership-canaries"]
    assert "70.0" in cells(text)["single sign flips seen, labels, %"]
    assert "Seeds 0, 2 of 3" in text
    assert "commit c1" in text
    (next_one,) = [v for k, v in cells(made["ownership-layout"]).items() if "on t+1 in the" in k]
    assert next_one == "0.40"
    assert cells(made["ownership-verification"])["forged keys accepted"] == "0 of 12"
    assert "commit c3" in made["ownership-verification"]


def test_rivals_stand_beside_each_other(tmp_path):
    def row(way, ours, dawn, p):
        return {"way": way, "ours": ours, "queries": 100, "ours_p": p[0], "dawn": dawn,
                "dawn_queries": 100, "dawn_p": p[1], "accuracy": 0.98, "served": 0.99,
                "served_by_dawn": 0.985}  # fmt: skip

    rows = {
        "hard 9": row(rivals.HARD, 12, 80, (0.3, 1e-40)),
        "hard 8": row(rivals.HARD, 8, 60, (0.8, 1e-30)),
        "file 9": row(rivals.FILE, 100, 0, (1e-90, 1.0)),
        "independent 0": row(rivals.FRESH, 10, 1, (0.5, 1.0)),
    }
    own = {"hits": 99, "copy_hits": 70, "accuracy": 0.98, "copy_accuracy": 0.97}
    plain = own | {"hits": 2, "copy_hits": 3}
    result = {"seed": 0, "rows": rows, "sizes": {"share": 0.005}, "measured": {"commit": "d"},
              "entangled": {"queries": 100, "entangled": own, "plain": plain}}  # fmt: skip
    write(tmp_path, "ownership-rivals-mnist-seed0.json", result)
    text = tables.made(tmp_path)["ownership-rivals"]
    made = cells(text)
    assert made["distilled by labels: our mark"].startswith("0 of 2 at p < 2^-64; hits of 100: 10")
    assert made["distilled by labels: DAWN's"].startswith("2 of 2 at")
    assert made["the file, stolen without a question: DAWN's"].startswith("0 of 1 at")
    assert made["what DAWN costs the service, points of accuracy"].startswith("0.50")
    assert "distilled by probabilities: our mark" not in made
    told = made["entangled watermarks, distilled by labels: hits of 100"]
    assert told == "70; without it 3"
    assert "DAWN marks 0.5% of all queries" in text


def test_dawn_answers_a_keyed_share_wrongly_and_always_alike():
    x = torch.rand(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    def model(part):
        return torch.eye(5)[(part.flatten(1).sum(1) * 7).long() % 5]

    service = Dawn(model, b"key", 5, 0.05, (0.0, 1.0))
    at, labels = service.marked(x)
    assert 100 < len(at) < 300
    answers, plain = service(x).argmax(1), model(x).argmax(1)
    assert torch.equal((answers != plain).nonzero()[:, 0], at)
    assert torch.equal(answers[at], labels)
    assert torch.equal(service(x[at[:3]]), service(x)[at[:3]]), "whatever else is asked beside it"
    assert torch.equal(service(x + 1e-6).argmax(1)[at], labels)
    others, _ = Dawn(model, b"other", 5, 0.05, (0.0, 1.0)).marked(x)
    assert set(others.tolist()) != set(at.tolist())
    spread = torch.bincount((labels - plain[at]) % 5, minlength=5)
    assert spread[0] == 0
    assert spread[1:].min() > 0.1 * len(at)
    assert worth(40, 100, 10) == p_value(40, 100, 9)


def test_entangled_groups_lie_among_each_other():
    apart = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
    groups, heat = torch.tensor([0, 0, 1, 1]), torch.tensor(1.0)
    mixed = soft_nearest_neighbour(apart, torch.tensor([0, 1, 0, 1]), heat)
    assert soft_nearest_neighbour(apart, groups, heat) < 1e-6 < 5 < mixed
    same = soft_nearest_neighbour(torch.zeros(4, 1), groups, heat)
    assert float(same) == pytest.approx(torch.log(torch.tensor(3.0)).item())


class Refusing:
    """A vault whose generations pass at the third seed."""

    def __init__(self):
        self.seeds, self.vault = [], self

    def last_number(self):
        return 7

    def generate(self, *, seed):
        self.seeds.append(seed)
        if len(self.seeds) < 3:
            raise GenerationError("refused")


def test_a_refused_candidate_does_not_stop_a_benchmark_for_ever():
    first, again = Refusing(), Refusing()
    assert vaults.grow(first, 0) == vaults.grow(again, 0) == 2
    assert first.seeds == again.seeds
    assert len(set(first.seeds)) == 3
    assert vaults.of_seed(Path("runs/ownership-{seed}-marked"), 2) == Path(
        "runs/ownership-2-marked"
    )


def test_a_try_is_not_taken_for_the_whole_measurement(tmp_path):
    path = tmp_path / "layout-mnist-seed1.json"
    path.write_text(json.dumps({"arguments": {"quick": True}, "vault": "mnist-1"}))
    assert layout.known(path, True, tmp_path / "mnist-1")["vault"] == "mnist-1"
    for quick, vault in ((False, "mnist-1"), (True, "other")):
        with pytest.raises(SystemExit, match="give the same flags"):
            layout.known(path, quick, tmp_path / vault)
