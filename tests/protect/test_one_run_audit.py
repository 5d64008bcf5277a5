"""What guesses prove: against the published figures, brute force and a linear program."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import ndtr
from scipy.stats import binom

from g2d.errors import SettingsError
from g2d.protect.privacy import audit_bounds as bounds
from g2d.protect.privacy import audit_curves as curves
from g2d.protect.privacy.audit_bounds import Guesses


def test_a_thousand_canaries_certify_no_more_than_5_8():
    assert bounds.power(1000, 1000, 0.0) == pytest.approx(math.log(0.05**0.001 / (1 - 0.05**0.001)))
    assert bounds.power(1000, 1000, 1e-5) == pytest.approx(5.8, abs=0.05)
    assert bounds.power(1000, 200, 1e-5) < bounds.power(1000, 400, 1e-5) < 5.8


def test_the_published_routine_gives_the_same():
    """Appendix D of Steinke et al. 2023, as it stands there, term by term."""
    for m, r, v, epsilon, delta in itertools.product(
        (30, 100), (10, 30), (6, 9, 10), (0.5, 2.0), (1e-3, 1e-5)
    ):
        q = 1 / (1 + math.exp(-epsilon))
        beta, alpha, total = binom.sf(v - 1, r, q), 0.0, 0.0
        for i in range(1, v + 1):
            total += binom.pmf(v - i, r, q)
            alpha = max(alpha, total / i)
        expected = min(1.0, beta + alpha * delta * 2 * m)
        assert bounds.p_value(Guesses(m, r, v), epsilon, delta) == pytest.approx(expected)


def test_a_bound_is_where_its_p_value_is_alpha_and_chance_proves_nothing():
    told = Guesses(200, 50, 45)
    found = bounds.lower_bound(told, 1e-5)
    assert bounds.p_value(told, found, 1e-5) < 0.05
    assert bounds.p_value(told, found + 1e-6, 1e-5) >= 0.05
    assert bounds.lower_bound(Guesses(200, 50, 46), 1e-5) > found
    assert bounds.lower_bound(Guesses(200, 50, 25), 1e-5) == 0
    assert bounds.lower_bound(Guesses(200, 0, 0), 1e-5) == 0
    assert curves.gaussian_lower_bound(Guesses(200, 50, 25), 1e-5) == 0


def test_randomised_response_is_refuted_no_more_often_than_said():
    """Exact: all of the chance of a result that refutes the truth, of coins that are told truly."""
    for m, epsilon in ((20, 0.5), (60, 1.0)):
        q = 1 / (1 + math.exp(-epsilon))
        for v in range(m + 1):
            chance = float(binom.sf(v - 1, m, q))
            assert bounds.p_value(Guesses(m, m, v), epsilon, 0.0) == pytest.approx(chance)
        wrong = sum(
            float(binom.pmf(v, m, q))
            for v in range(m + 1)
            if curves.refuted(Guesses(m, m, v), curves.of_pairs([(epsilon, 0.0)]))
        )
        assert wrong <= 0.05


def test_a_leak_of_everything_with_chance_delta_is_allowed_for():
    """With chance delta all coins are told, else one of them by randomised response."""
    m, epsilon, delta = 16, 1.0, 0.02
    q = 1 / (1 + math.exp(-epsilon))
    for v in range(1, m + 1):
        chance = delta + (1 - delta) * float(binom.sf(v - 1, m, q))
        assert bounds.p_value(Guesses(m, m, v), epsilon, delta) >= min(1.0, chance) - 1e-12
        assert curves.tail(Guesses(m, m, v), curves.of_pairs([(epsilon, delta)])) >= chance - 1e-9


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_noisy_coins_never_go_beyond_the_curve(mu):
    """Each coin s in +-1 told as s + N(0, (2 / mu)^2) is mu-GDP; the sign is right by Phi(mu / 2).

    Guesses of the r clearest are simulated; of all m their distribution is known.
    """
    m, inverse = 60, curves.gaussian(mu)
    for v in (35, 45, 55):
        chance = float(binom.sf(v - 1, m, ndtr(mu / 2)))
        assert curves.tail(Guesses(m, m, v), inverse) >= chance
    source = np.random.default_rng(0)
    coins = source.random((20_000, m)) < 0.5
    told = np.where(coins, 1, -1) + 2 / mu * source.standard_normal(coins.shape)
    clear = np.argsort(-np.abs(told), axis=1)[:, :10]
    right = (np.take_along_axis(told, clear, 1) > 0) == np.take_along_axis(coins, clear, 1)
    counts = right.sum(1)
    for v in (7, 8, 9, 10):
        assert curves.tail(Guesses(m, 10, v), inverse) >= float((counts >= v).mean()) - 0.02
    refuting = [v for v in range(11) if curves.refuted(Guesses(m, 10, v), inverse)]
    assert float(np.isin(counts, refuting).mean()) <= 0.055


def by_program(m: int, r: int, v: int, pairs: list[tuple[float, float]]) -> float:
    """The largest P[N >= v] over all distributions that meet every constraint, by HiGHS."""
    rows, limits = [], []
    for i in range(r):
        above = np.array([j / m if j >= i + 1 else 0.0 for j in range(r + 1)])
        others = np.array([(r - j) / m if j >= i else 0.0 for j in range(r + 1)])
        for epsilon, delta in pairs:
            rows += [above - math.exp(epsilon) * others, above - math.exp(-epsilon) * others]
            limits += [delta, 1 - math.exp(-epsilon) * (1 - delta)]
    goal = -np.array([float(j >= v) for j in range(r + 1)])
    found = linprog(goal, np.array(rows), limits, np.ones((1, r + 1)), [1.0], bounds=(0, 1))
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize(
    "pairs", [[(1.0, 0.0)], [(0.5, 0.05)], [(0.0, 0.3), (0.7, 0.1), (1.5, 0.01)], [(3.0, 1e-5)]]
)
def test_the_recursion_is_as_good_as_the_linear_program(pairs):
    for m, r in ((6, 6), (12, 7)):
        for v in range(1, r + 1):
            least = curves.tail(Guesses(m, r, v), curves.of_pairs(pairs))
            assert least == pytest.approx(by_program(m, r, v, pairs), abs=1e-6)


def test_of_a_gaussian_the_curve_proves_more_than_one_pair():
    """What the paper is for: a gap that one pair leaves (mu = 1, 1,000 canaries, all guessed)."""
    mu, delta, m = 1.0, 1e-5, 1000
    told = Guesses(m, m, round(m * float(ndtr(mu / 2))))
    pair, curve = bounds.lower_bound(told, delta), curves.gaussian_lower_bound(told, delta)
    assert pair < 0.6 * curve
    assert curve < curves.epsilon_of(mu, delta)
    profile = [(e, curves.delta_of(0.2, e)) for e in np.linspace(0, 6, 61)]
    assert curves.refuted(told, curves.of_pairs(profile))
    profile = [(e, curves.delta_of(mu, e)) for e in np.linspace(0, 6, 61)]
    assert not curves.refuted(told, curves.of_pairs(profile))


def test_gaussian_figures_are_the_known_ones():
    assert curves.delta_of(1.0, 1.0) == pytest.approx(ndtr(-0.5) - math.e * ndtr(-1.5))
    assert curves.epsilon_of(1.0, 1e-5) == pytest.approx(4.377, abs=2e-3)  # Dong, Roth, Su
    assert curves.epsilon_of(0.0, 1e-5) == 0
    assert curves.gaussian(1.0)(1.0) == 1
    assert curves.of_pairs([(1.0, 0.1)])(0.05) == 0


def test_guesses_are_of_both_ends_and_are_counted():
    scores = np.array([0.1, 5.0, -3.0, 0.2, 9.0, -4.0])
    made = bounds.guess(scores, 4)
    assert made.tolist() == [0, 1, -1, 0, 1, -1]
    assert bounds.judge(made, [True, True, True, False, True, False]) == Guesses(6, 4, 3)
    assert bounds.judge(bounds.guess(scores, 0), [True] * 6) == Guesses(6, 0, 0)
    for bad, count in ((scores, 7), (np.array([np.nan, 1.0]), 1)):
        with pytest.raises(SettingsError):
            bounds.guess(bad, count)


def test_what_cannot_be_is_refused():
    for told in ((0, 0, 0), (5, 6, 1), (5, 3, 4)):
        with pytest.raises(SettingsError, match="expected"):
            Guesses(*told)
    some = Guesses(5, 3, 3)
    for call in (
        lambda: bounds.p_value(some, -1.0, 0.0), lambda: bounds.p_value(some, 1.0, 2.0),
        lambda: bounds.lower_bound(some, 0.0, 0.0), lambda: curves.of_pairs([]),
        lambda: curves.of_pairs([(-1.0, 0.0)]), lambda: curves.refuted(some, lambda y: y, 1.0),
        lambda: curves.epsilon_of(1.0, 0.0),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match="expected"):
            call()
