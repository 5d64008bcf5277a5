"""The parts of benchmarks/robust that decide what its tables say."""

from __future__ import annotations

import pytest
import torch

from benchmarks.robust import compute, records, targets
from benchmarks.robust.judge import behind_front, bits
from g2d.attacks import project
from g2d.tasks.networks import mnist_robust_cnn


def test_the_attack_behind_the_front_stays_in_the_ball_and_raises_the_loss():
    torch.manual_seed(0)
    model = mnist_robust_cnn().requires_grad_(False)
    x, y = torch.rand(6, 1, 28, 28), torch.arange(6)
    found = behind_front(model, x, y, 0.3, 10, seed=0)
    assert torch.allclose(project(found, x, 0.3, (0.0, 1.0)), found, atol=1e-4)
    loss = torch.nn.functional.cross_entropy
    assert loss(model(found), y) > loss(model(x), y)


def record(seed: int, own: list[int], stale: list[int]) -> records.Record:
    def alive(values: list[int]) -> dict[str, object]:
        share = sum(values) / len(values)
        kept = bits(torch.tensor(values).bool())
        return {"accuracy": share, "worst": share, "survivors": [kept], "known": 20}

    row = alive(own) | {"autoattack": 0.5, "stale_joint": alive(stale), "itself": alive(own)}
    return {"seed": seed, "sizes": {"N": len(own)}, "rows": {"generated": row}}


def test_differences_are_paired_by_image_and_averaged_over_seeds():
    own = [1, 0] * 50
    same, better = record(0, own, own), record(1, own, [1, 1] * 50)

    def secret(one: records.Record) -> list[records.Alive | None]:
        return [records.alive(one, "generated", key) for key in ("stale_joint", "itself")]

    def less(a: float, b: float) -> float:
        return a - b

    assert records.paired([same], secret, less) == (0.0, 0.0, 0.0)  # no noise in what is equal
    value, low, high = records.paired([same, better], secret, less)
    assert value == pytest.approx(0.25)
    assert 0.15 < low < 0.25 < high < 0.35
    assert records.paired([{"rows": {}, "sizes": {"N": 1}}], secret, less) is None


def test_only_the_first_images_are_compared_where_a_row_has_more():
    one = record(0, [1, 0, 1, 1], [1, 1])  # AutoAttack saw four, of which the first two are shared
    drawn = records.redrawn([one], lambda r: [records.alive(r, "generated", "stale_joint"),
                                             records.alive(r, "generated")])  # fmt: skip
    assert drawn[0].tolist() == [[1.0, 0.5]]


def test_who_owns_the_generator_and_stored_attacks_is_stopped_by_neither_alone():
    stored, adaptive = {"survivors": ["1100"]}, {"survivors": ["0000", "1010"]}
    both = records._owning({"stale_any": stored, "adaptive": adaptive})
    assert both == {"accuracy": 0.25, "worst": 0.25, "survivors": ["1000"]}  # the newest targets


def test_a_target_that_was_not_measured_is_neither_met_nor_missed():
    assert targets.met(None, at_least=0.9) == "–"
    assert (targets.met(0.9, at_least=0.9), targets.met(0.89, at_least=0.9)) == ("yes", "**no**")
    assert (targets.met(0.0, at_most=0.01), targets.met(0.02, at_most=0.01)) == ("yes", "**no**")


def test_the_curve_of_compute_says_where_a_goal_is_reached_or_that_it_never_is():
    names = ("PGD, 1/4 of the steps", "PGD, 1/2 of the steps", "PGD")

    def curve(seed: int, *shares: float) -> records.Record:
        rows = {
            name: {
                "autoattack": share, "cpu_seconds": seconds, "clean": 0.99,
                "survivors": [bits(torch.arange(100) < 100 * share)],
            }
            for name, share, seconds in zip(names, shares, (100, 200, 400), strict=True)
        }  # fmt: skip
        return {"seed": seed, "sizes": {"N": 100}, "rows": rows}

    rising, falling = curve(0, 0.8, 0.9, 0.95), curve(1, 0.9, 0.88, 0.85)
    text = compute.compute([rising])
    assert "3 points, means of 1 seed," in text
    assert "96 % at 500 CPU s" in text
    assert "93 % never" in compute.compute([falling])
    # A seed that never gets there lessens the mean; it is no power of ten to be averaged.
    both = compute.compute([rising, falling])
    assert "93 % at 1,198 CPU s" in both
    assert "on, without a bound)" in both
    rows = {"PGD": rising["rows"]["PGD"]}
    one = {"seed": 1, "sizes": {"N": 100}, "rows": rows}
    assert "reaches" not in compute.compute([one])  # a single point is no curve
