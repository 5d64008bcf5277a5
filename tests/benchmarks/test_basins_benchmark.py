"""The parts of benchmarks/generation that decide what the table of basins says."""

from __future__ import annotations

import tomllib
from types import SimpleNamespace

import pytest
import torch

from benchmarks.common.places import ROOT
from benchmarks.generation import basins, basins_tables, curve
from benchmarks.generation.judge import Budget, Judge, from_hex, to_hex
from benchmarks.generation.starts import Starts
from benchmarks.generation.ways import Maker
from g2d.attacks.pgd import project
from g2d.settings import GuidanceSettings, Settings, build
from g2d.weights.checkpoints import unpack
from tables import table_task


def test_flips_survive_being_written():
    flags = [False, False, True, False, True, True, False, False]
    assert from_hex(to_hex(torch.tensor(flags)), 8) == flags


def test_a_chain_is_judged_beside_had_it_stayed(defence):
    states = [unpack(defence.vault.read(entry)) for entry in defence.vault.entries("member")]
    judge = Judge(defence.task, 0, Budget(images=40, steps=8, single_steps=4))
    row = judge(states[:3], [states[2], *states[3:4]], states[2:3])
    # The first target is the network that the last attack was crafted on.
    assert row["last"][0] == row["last_stayed"][1]
    assert row["tries"][0] >= max(row["basins"][0], row["joint_16"][0])
    assert row["owner"] > 0
    assert row["known"] == 3
    assert len(row["tries_flips"]) == len(row["clean"]) == 2


def test_starts_lie_in_the_basin_that_was_asked_for(defence):
    starts = Starts(Maker(defence, 0))
    for basin in starts.known:
        like = starts._of(basin).mean(0)
        for draw in (starts.member, starts.soup, starts.gaussian, starts.diffusion):
            assert starts.space.mates(like, [draw(basin, torch.Generator().manual_seed(1))])


def test_a_chain_rests_basins_and_the_owner_draws_what_the_next_network_is_drawn_from(defence):
    starts = Starts(Maker(defence, 0))
    plain = starts.chain("free", 4, starts.soup, True, known=3, proposals=2)
    vectors = [starts.maker.generator.codec.encode(state) for state in plain.states[1:]]
    turns = len(starts.known)
    for place, v in enumerate(vectors[turns:]):
        assert starts.space.mates(v, [vectors[place]])
    assert len(plain.owner) == 2
    assert len(plain.states) == 5
    s = GuidanceSettings(polish_steps=2, pool=20, pool_steps=1, joint_weight=1.0, joint_pool=20)
    polished = starts.chain("polished", 2, starts.soup, True, settings=s)
    assert len(polished.states) == 3


def test_the_example_is_what_was_measured():
    text = (ROOT / "examples" / "basin.toml").read_text()
    given = build(Settings, tomllib.loads(text), "examples/basin.toml")
    assert given.guidance == basins.POLISHED
    assert given.generator.bank == basins.BANK


def test_another_task_is_polished_by_its_own_sizes_and_mnist_by_what_was_chosen_there():
    own = GuidanceSettings(mu=0.5, batch=128, pool=400, polish_steps=200)
    plain, polished = basins.guidance_of("nsl-kdd", own)
    assert plain == own
    assert polished == GuidanceSettings(
        mu=0.5, batch=128, pool=400, polish_steps=300, resting=True, memory=basins.KNOWN,
        joint_weight=1.0, bank_weight=0.75,
    )  # fmt: skip
    assert basins.guidance_of(basins.MNIST, own) == (basins.PLAIN, basins.POLISHED)


def test_a_table_of_flows_is_judged_within_its_budget_and_without_tricks_for_images():
    task = table_task()
    judge = Judge(task, 0, Budget(images=20, steps=4, single_steps=2))
    assert judge.tricks
    assert not any(one.for_images for one in judge.tricks)
    row = judge([task.model(seed).state_dict() for seed in range(3)], [task.model(3).state_dict()])
    assert row["submissions"] == len(judge.tricks) * row["sorted_into"] + 1
    [made] = judge.white_box(task.model(3))[:1]
    inside = project(made, judge.split.x, task.eps, task.reach)
    assert torch.equal(inside, made)


def test_a_curve_goes_on_where_it_stopped(defence, tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "RUNS", tmp_path)
    monkeypatch.setattr(curve, "RESULTS", tmp_path)
    s = GuidanceSettings(polish_steps=2, pool=20, pool_steps=1, memory=2)
    monkeypatch.setitem(curve.ROWS, "short", curve.Row((2,), s))
    table = SimpleNamespace(
        seed=0, starts=(starts := Starts(Maker(defence, 0))), maker=starts.maker
    )
    whole, cpu = curve.Curve(table).chain("short", curve.ROWS["short"], 4)
    again, same = curve.Curve(table).chain("short", curve.ROWS["short"], 4)
    assert cpu == pytest.approx(same, abs=1e-3)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(whole, again, strict=True) for n in a)
    (tmp_path / "curve-0" / "short" / "0002").unlink()
    last = curve.Curve(table).chain("short", curve.ROWS["short"], 4)[0][-1]
    assert all(torch.equal(last[n], whole[-1][n]) for n in last)


def test_judged_networks_of_an_unseen_basin_share_none_with_those_that_were_read(
    defence, tmp_path, monkeypatch
):
    monkeypatch.setattr(curve, "RESULTS", tmp_path)
    monkeypatch.setattr(curve, "TARGETS", 2)
    table = SimpleNamespace(
        seed=0, starts=(starts := Starts(Maker(defence, 0))), maker=starts.maker
    )
    states, _ = curve.Curve(table).chain("unseen", curve.Row((4,), unseen=True), 6)
    vectors = [starts.maker.generator.codec.encode(state) for state in states[1:]]
    *read, late, last = vectors
    assert starts.space.mates(late, [last]) == [0]
    assert not starts.space.mates(late, read)


def test_rows_that_nobody_knows_are_refused_before_anything_is_made():
    assert basins.picked(None, ["a", "b"]) == ["a", "b"]
    assert basins.picked(["b"], ["a", "b"]) == ["b"]
    with pytest.raises(SystemExit, match="unknown rows: c; there are"):
        basins.picked(["b", "c"], ["a", "b"])


def test_a_row_differs_from_itself_by_nothing():
    row = {"tries_flips": ["f0", "0f"]}
    runs = [{"rows": {"soup": row, "product": row}}]
    assert basins_tables.apart(runs, "soup", "tries").startswith("+0.0 (")
