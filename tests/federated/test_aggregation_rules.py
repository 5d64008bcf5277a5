"""Aggregation rules beside ByzFL's, by hand, and under attack; no torch."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from g2d.errors import SettingsError
from g2d.settings.federated import FederatedSettings
from g2d.training.federated import rules
from g2d.training.federated.aggregation import RULES, Aggregation, Around

N, P = 12, 40


def updates(seed=0, n=N):
    return np.random.default_rng(seed).normal(1.0, 1.0, (n, P)).astype(np.float32)


@pytest.fixture(scope="module")
def byzfl():
    """ByzFL's aggregators without its `__init__`, which imports torchvision and matplotlib."""
    folders = [Path(folder, "byzfl") for folder in sys.path]
    found = next((f for f in folders if (f / "aggregators" / "aggregators.py").is_file()), None)
    if found is None:
        pytest.skip("byzfl 0.0.11 is not on the path: there is nothing to compare with")
    package = types.ModuleType("byzfl")
    package.__path__ = [str(found)]
    before = {name for name in sys.modules if name.partition(".")[0] == "byzfl"}
    sys.modules["byzfl"] = package
    try:
        yield importlib.import_module("byzfl.aggregators")
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "byzfl"]:
            if name not in before:
                del sys.modules[name]


@pytest.mark.parametrize("f", [1, 3, 5])
def test_rules_are_byzfls(byzfl, f):
    X = updates(f)
    wide = X.astype(np.float64)
    pairs = {
        "mean": (rules.mean(X), byzfl.Average()(wide)),
        "median": (rules.median(X), byzfl.Median()(wide)),
        "trimmed": (rules.trimmed_mean(X, f), byzfl.TrMean(f)(wide)),
        "geometric": (
            rules.geometric_median(X), byzfl.GeometricMedian(nu=1e-9, T=2000)(wide)
        ),
        # ByzFL counts one neighbour more than Blanchard et al. do.
        "krum": (rules.multi_krum(X, f, N - f - 1), byzfl.MultiKrum(f)(wide)),
        "clipping": (
            rules.centred_clipping(X, np.zeros(P), radius=3.0, steps=5),
            byzfl.CenteredClipping(L=5, tau=3.0)(wide),
        ),
        "mixing": (rules.mixed(X, f), byzfl.NNM(f)(wide)),
    }  # fmt: skip
    for name, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6, err_msg=name)
        assert ours.dtype == np.float32


@pytest.mark.parametrize("far", [0.0, 0.1, 50.0])
def test_mixing_of_shared_neighbourhoods_gives_the_bytes_of_each_rows_own(far):
    X = updates(3)
    X[-3:] = X[:-3].mean(0) + far  # three that send the same
    near = np.sort(np.argsort(_away(X), axis=1, kind="stable")[:, : N - 3], axis=1)
    wide = X.astype(np.float64)
    one_by_one = np.stack([wide[row].mean(0) for row in near]).astype(np.float32)
    assert rules.mixed(X, 3).tobytes() == one_by_one.tobytes()


def _away(X):
    away = rules.distances(X)
    np.fill_diagonal(away, -1.0)
    return away


def test_krum_takes_the_papers_neighbours():
    X = np.array([[0.0], [1.0], [2.0], [10.0], [50.0]], np.float32)
    # n = 5, f = 1: two nearest others each.
    np.testing.assert_allclose(rules.krum_scores(X, 2), [5, 2, 5, 64 + 81, 1600 + 48**2])
    np.testing.assert_allclose(rules.multi_krum(X, 1), [3.25])


def test_bulyan_by_hand():
    X = np.array([[0], [1], [2], [3], [4], [5], [99]], np.float32)
    # f = 1: five are chosen by Krum, the three of them nearest to their median are averaged.
    assert rules.bulyan(X, 1)[0] in (np.float32(2), np.float32(3))
    assert np.allclose(rules.bulyan(X, 0), rules.mean(X))


def test_fltrust_is_deaf_to_who_points_elsewhere():
    root = np.array([2.0, 0.0], np.float32)
    X = np.array([[1, 0], [10, 0], [-1e6, 0], [0, 5]], np.float32)
    np.testing.assert_allclose(rules.fltrust(X, root), [2.0, 0.0])
    np.testing.assert_array_equal(rules.fltrust(-X[:2], root), [0.0, 0.0])
    np.testing.assert_array_equal(rules.fltrust(X, np.zeros(2, np.float32)), [0.0, 0.0])


def test_norms_are_clipped_by_the_median_norm():
    X = np.array([[3, 4], [0, 5], [0, 5000]], np.float32)
    np.testing.assert_allclose(rules.norms(rules.clip_norms(X, 2.0)), [5, 5, 10], rtol=1e-6)
    np.testing.assert_array_equal(rules.clip_norms(np.zeros((2, 2)), 2.0), np.zeros((2, 2)))


@pytest.mark.parametrize("rule", [name for name in RULES if name != "mean"])
@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("far", [-1e4, 3e38])
def test_a_rule_bears_what_it_says(rule, mix, far):
    X = updates(n=15)
    f = 3
    settings = FederatedSettings(clients=15, f=f, rule=rule, mix=mix, clip=0.0, root=1)
    around = Around(f, np.zeros(P, np.float32), np.ones(P, np.float32))
    honest = X[f:].mean(0)
    X[:f] = far
    gap = np.linalg.norm(Aggregation.of(settings)(X, around) - honest)
    assert gap < 0.5 * np.linalg.norm(honest), gap
    assert np.linalg.norm(X.mean(0, dtype=np.float64) - honest) > 100 * np.linalg.norm(honest)


def test_where_most_may_be_malicious_the_median_norm_is_theirs_and_clips_nobody():
    """FLTrust bears a majority: one of tiny answers would scale the honest ones down to nothing."""
    X, f = updates(), 7
    around = Around(f, np.zeros(P, np.float32), np.ones(P, np.float32))
    X[:f], X[:f, 0] = 0, 1e-45
    settings = FederatedSettings(clients=N, f=f, rule="fltrust", mix=False, clip=2.0, root=1)
    found = Aggregation.of(settings)(X, around)
    assert np.abs(found).max() < 0.9 * np.linalg.norm(found)


def test_equal_rows_give_that_row_and_order_does_not_count():
    same = np.tile(updates()[0], (N, 1))
    around = Around(1, np.zeros(P, np.float32), same[0])
    for name, rule in RULES.items():
        if name != "centred-clipping":  # begins at the last aggregate
            np.testing.assert_allclose(rule.apply(same, around), same[0], rtol=1e-5, err_msg=name)
    X = updates()
    turned = np.random.default_rng(1).permutation(N)
    for name in ("median", "geometric-median", "multi-krum"):  # Bulyan's last choices are ties
        a, b = (RULES[name].apply(rows, around) for rows in (X, X[turned]))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rule": "medain"}, "Did you mean 'median'"),
        ({"rule": "multi-krum", "f": 9}, r"n >= 2f \+ 3 = 21 .* of so many it bears f = 8"),
        ({"rule": "bulyan", "f": 5}, r"n >= 4f \+ 3 = 23"),
        ({"rule": "mean", "f": 1}, "bears no malicious client at all"),
        ({"rule": "median", "f": 10, "mix": False}, r"n >= 2f \+ 1 = 21"),
        ({"rule": "median", "f": 10}, "needs an honest majority"),
        ({"rule": "fltrust", "root": 0}, "set .federated. root"),
        ({"secure": True}, "hides malicious ones, too"),
        ({"secure": True, "rule": "mean"}, "no secure aggregation of its own"),
    ],
)
def test_what_a_rule_cannot_bear_is_refused_in_plain_words(given, words):
    with pytest.raises(SettingsError, match=words) as caught:
        Aggregation.of(FederatedSettings(**given))
    assert "\n" not in str(caught.value)


def test_few_answers_are_no_round():
    rule = Aggregation.of(FederatedSettings(rule="multi-krum", f=4))
    with pytest.raises(SettingsError, match="and 10 answered"):
        rule(updates(n=10), Around(4, np.zeros(P, np.float32)))


def test_neighbours_are_mixed_only_where_most_who_answered_are_honest():
    """A rule that bears any f has no majority of its own to ask for, and mixing needs one."""
    rule = Aggregation.of(FederatedSettings(rule="fltrust", f=8))
    around = Around(8, np.zeros(P, np.float32), np.ones(P, np.float32))
    with pytest.raises(SettingsError, match=r"16 answered, .* honest majority") as caught:
        rule(updates(n=16), around)
    assert "\n" not in str(caught.value)
    assert rule(updates(n=17), around).shape == (P,)
    alone = Aggregation.of(FederatedSettings(rule="fltrust", f=8, mix=False))
    assert alone(updates(n=9), around).shape == (P,)
