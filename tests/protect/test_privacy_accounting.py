"""Epsilons against closed forms, against Opacus' accountant, and what is no spending."""

from __future__ import annotations

import json
import math
import sys

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from g2d.errors import G2DError
from g2d.protect.privacy.accounting import Spending, delta_of, epsilon, naive, require, total

pytest.importorskip("dp_accounting")

DELTA = 1e-5


def spent(mechanism, noise, rate=1.0, count=1, block="all"):
    return Spending("a test", block, mechanism, noise, rate, count)


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Balle & Wang 2018, arXiv 1805.06530, theorem 8."""

    def excess(eps: float) -> float:
        a, b = 1 / (2 * sigma), eps * sigma
        return float(norm.cdf(a - b) - math.exp(eps) * norm.cdf(-a - b)) - delta

    return float(brentq(excess, 0, 100))


def test_the_gaussian_mechanism_has_its_closed_form():
    for sigma, count in ((1.0, 1), (4.0, 1), (8.0, 16)):
        known = gaussian_epsilon(sigma / math.sqrt(count), DELTA)
        found = epsilon([spent("gaussian", sigma, count=count)], DELTA)
        assert known - 1e-6 <= found <= known + 0.005
    at = epsilon([spent("gaussian", 2.0)], DELTA)
    assert delta_of([spent("gaussian", 2.0)], at) == pytest.approx(DELTA, rel=0.02)


def test_a_sample_of_all_is_the_gaussian_mechanism():
    whole = epsilon([spent("sampled_gaussian", 3.0, 1.0, 9)], DELTA)
    assert whole == pytest.approx(gaussian_epsilon(1.0, DELTA), abs=0.01)


def test_pure_mechanisms_cost_at_most_their_sum_and_less_when_there_are_many():
    one = epsilon([spent("laplace", 2.0)], DELTA)
    assert 0.49 < one <= 0.501
    once = epsilon([spent("sparse_vector", 20.0)], DELTA)
    assert 0.099 < once <= 0.101
    assert epsilon([spent("sparse_vector", 20.0, count=100)], DELTA) < 0.6 * 100 * once


@pytest.mark.filterwarnings("ignore:Optimal order")  # of RDP, by which PRV finds its domain
@pytest.mark.parametrize(
    "runs",
    [
        [(1.5, 1024 / 48_000, 700)],
        [(0.8, 0.005, 500)],
        [(1.5, 1024 / 48_000, 700), (3.0, 1024 / 48_000, 720)],
    ],
)
def test_opacus_accountant_agrees_to_a_twentieth(runs):
    """PRV (Gopi et al. 2021, arXiv 2106.02848): the same composition, by other code."""
    accountant = pytest.importorskip("opacus.accountants").PRVAccountant()
    accountant.history = list(runs)
    rival = accountant.get_epsilon(DELTA, eps_error=0.01)
    ours = epsilon([spent("sampled_gaussian", *run) for run in runs], DELTA)
    assert ours == pytest.approx(rival, abs=0.05)


def test_alike_spendings_are_one_and_their_order_is_nothing():
    base, fork = spent("sampled_gaussian", 1.5, 0.02, 300), spent("sampled_gaussian", 3.0, 0.02, 30)
    counted = spent("sampled_gaussian", 3.0, 0.02, 90)
    assert epsilon([base, fork, fork, fork], DELTA) == epsilon([counted, base], DELTA)
    assert epsilon([base, fork], DELTA) < epsilon([base, fork, fork], DELTA)


def test_blocks_cost_their_greatest_and_the_naive_rival_more():
    forks = [spent("sampled_gaussian", 3.0, 0.02, 30, "a") for _ in range(24)]
    other = spent("gaussian", 30.0, block="b")
    assert total([*forks, other], DELTA) == epsilon(forks, DELTA) > epsilon([other], DELTA)
    assert naive([*forks, other], DELTA) > 2 * total([*forks, other], DELTA)
    assert naive(forks[:1], DELTA) == epsilon(forks[:1], DELTA)


def test_nothing_costs_nothing_and_raw_records_everything():
    assert total([], DELTA) == epsilon([], DELTA) == delta_of([], 1.0) == 0.0
    assert epsilon([spent("gaussian", 1.0, count=0)], DELTA) == 0.0
    for raw in (spent("unbounded", 0.0), spent("gaussian", 0.0)):
        fine = spent("gaussian", 10.0)
        assert epsilon([fine, raw], DELTA) == total([fine, raw], DELTA) == math.inf
        assert naive([fine, raw], DELTA) == math.inf
        assert delta_of([fine, raw], 1.0) == 1.0


def test_little_noise_is_told_without_a_huge_table():
    noise, rate = 0.02, 0.01
    close = 1 / (2 * noise**2) + norm.isf(DELTA / rate) / noise + math.log(rate)
    found = epsilon([spent("sampled_gaussian", noise, rate)], DELTA)
    assert found == pytest.approx(close, rel=1e-3)


def test_a_spending_survives_its_json():
    one = Spending("base", "train", "sampled_gaussian", 1.5, 0.02, 700, {"clip": 0.5})
    assert Spending.from_json(json.loads(json.dumps(one.to_json()))) == one
    short = {"what": "b", "block": "t", "mechanism": "laplace", "noise": 2}
    assert Spending.from_json(short) == Spending("b", "t", "laplace", 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mechanism": "gausian"}, "is no mechanism"),
        ({"noise": -1.0}, "noise is at least 0"),
        ({"noise": math.nan}, "noise is at least 0"),
        ({"noise": "1"}, "noise is a number"),
        ({"rate": 0.0}, r"rate lies in \(0, 1\]"),
        ({"rate": 1.5}, r"rate lies in \(0, 1\]"),
        ({"mechanism": "laplace", "rate": 0.5}, "nothing is known of a sampled laplace"),
        ({"count": -1}, "whole number from 0"),
        ({"count": 1.5}, "whole number from 0"),
        ({"block": 3}, "texts"),
        ({"note": []}, "note is a table"),
        ({"extra": 1}, "a spending has no extra"),
        ({"noise": None}, "noise is a number"),
    ],
)
def test_what_is_no_spending_is_refused(changes, message):
    table = spent("sampled_gaussian", 1.0, 0.1).to_json() | changes
    with pytest.raises(ValueError, match=message):
        Spending.from_json(table)
    with pytest.raises(ValueError, match="says block, mechanism, noise"):
        Spending.from_json({"what": "base"})
    with pytest.raises(ValueError, match="delta lies between"):
        epsilon([spent("gaussian", 1.0)], 1.0)


def test_a_missing_accountant_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(G2DError, match=r"needs dp-accounting .*: pip install 'g2d\[privacy\]'"):
        require()
