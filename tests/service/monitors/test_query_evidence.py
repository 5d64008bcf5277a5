"""Alarms without cause are as rare as was promised; who is forgotten does not begin at zero."""

from __future__ import annotations

import numpy as np
import pytest

from g2d.service.monitors.queries.evidence import (
    NOTHING,
    Accounts,
    Purse,
    Ranks,
    Test,
    bet,
    worth,
)
from g2d.service.monitors.queries.trails import LAST, Margins, Trail

NONE, SURE = np.zeros(0, np.uint8), np.array([10.0, 0.0])


def test_ranks_of_values_in_no_order_are_even_ties_or_none():
    draws = np.random.default_rng(0)
    for values in (draws.normal(size=3000), draws.integers(0, 3, 3000), np.zeros(3000)):
        ranks = Ranks(skip=8)
        told = [ranks.add(float(v), 1 - draws.random()) for v in values]
        assert told[:8] == [None] * 8
        p = np.array([one for one in told if one is not None])
        assert ((p > 0) & (p <= 1)).all()
        shares = np.histogram(p, bins=5, range=(0, 1))[0] / len(p)
        assert np.abs(shares - 0.2).max() < 0.04


def test_no_value_is_ranked_in_two_lists(monkeypatch):
    monkeypatch.setattr("g2d.service.monitors.queries.evidence._SEGMENT", 4)
    ranks = Ranks(skip=1)
    told = [ranks.add(value, 1.0) for value in (5.0, 6.0, 7.0, 8.0, 1.0, 2.0)]
    # The fifth begins a list: ranked among the first four as well, it would make the sixth high.
    assert told == [None, 1.0, 1.0, 1.0, None, 1.0]


def test_alarms_without_cause_are_at_most_as_many_as_inputs_paid_for():
    draws = np.random.default_rng(1)
    rate, alarms, inputs = 0.01, 0, 20_000
    purse, test = Purse(rate), Test()
    for _ in range(inputs):
        purse.earn(1)
        p = 1 - float(draws.random())
        alarms += test.add((p, 1 - p, 1 - float(draws.random())), purse)
        if draws.random() < 0.02:  # many tests, each with a first stake
            test = Test()
    assert alarms <= rate * inputs


def test_a_purse_never_pays_more_than_it_was_paid():
    purse, paid = Purse(1e-3), 0.0
    assert purse.first() == 0.0
    for step in range(1000):
        purse.earn(1)
        paid += purse.first() if step % 7 == 0 else purse.next()
        assert paid <= 1e-3 * (step + 1) + 1e-12
    purse.earn(10**9)
    assert purse.held == 1.0  # one alarm at most
    assert purse.first() == 1e-3


def test_a_search_needs_no_more_than_some_dozens_of_queries():
    draws = np.random.default_rng(2)
    purse, trail, best = Purse(5e-7), Trail(1, SURE, 8, NONE), 10.0
    for query in range(1, 200):  # noqa: B007 - its last value is what is asked
        purse.earn(1)
        margin = best + draws.exponential(1.0) - 0.4
        best = min(best, margin)
        step = trail.add(np.array([margin, 0.0]), NONE, False, 1 - draws.random(), 0)
        if step.descent and trail.descent.add(step.descent, purse):
            break
    assert query < 60
    assert trail.descent.evidence == NOTHING  # it was spent
    assert trail.descent.staked <= 5e-7 * query


def test_evidence_that_has_to_wait_is_no_more_than_enough():
    purse, test = Purse(1e-3), Test()
    purse.earn(1000)
    for _ in range(50):
        assert not test.add((1e-6,), purse, wait=True)
        assert worth(test.evidence) <= 1.0
    assert test.add((1e-6,), purse)
    assert test.evidence == NOTHING


def test_a_trail_has_fallen_where_an_answer_is_a_quarter_less_sure_than_the_first():
    trail = Trail(1, SURE, 8, NONE)
    for margin, fallen in ((9.0, False), (7.6, False), (7.5, True)):
        trail.add(np.array([margin, 0.0]), NONE, False, 0.5, 0)
        assert trail.fallen == fallen
    for _ in range(LAST):
        trail.add(SURE, NONE, False, 0.5, 0)
    assert not trail.fallen  # that is long ago


def test_what_differs_more_than_the_first_variants_did_is_another_scene():
    trail = Trail(1, SURE, 8, NONE)
    for reach, leaps in ((20, False), (5, False), (40, False), (30, False), (64, False)):
        assert trail.leaps(reach) == leaps
        trail.add(SURE, NONE, False, 0.5, 0)
    assert trail.leaps(103)
    assert not trail.leaps(100)
    assert not Trail(1, SURE, 8, NONE).leaps(255)  # nothing is known of the first


def test_margins_of_another_network_are_not_compared():
    draws = np.random.default_rng(3)
    trail, p = Trail(1, SURE, 4, NONE), []
    for epoch in range(100):  # each generation is less sure; none has seven variants
        p += [
            trail.add(
                np.array([100.0 - epoch + draws.random(), 0]), NONE, False, 0.5, epoch
            ).descent
            for _ in range(4)
        ]
    assert p == [None] * 400


@pytest.mark.parametrize(
    ("low", "flips", "count", "at"),
    [(1, 0.5, 200, True), (1, 0.5, LAST - 1, False), (0.4, 0.5, 200, False), (1, 0, 200, False)],
)
def test_variants_lie_at_a_boundary_where_margins_stay_low_and_labels_change(low, flips, count, at):
    draws, trail, found = np.random.default_rng(4), Trail(1, SURE, 8, NONE), False
    for _ in range(count):
        logits = np.array([0.0, 1.0 if draws.random() < flips else -1.0])
        trail.add(logits, NONE, bool(draws.random() < low), 0.5, 0)
        found |= trail.at_boundary
    assert found == at


def test_inputs_that_move_away_from_the_first_are_told_from_those_that_stay():
    draws, purse = np.random.default_rng(5), Purse(1e-6)
    purse.earn(10**6)

    def moves(by: float) -> bool:
        trail, there = Trail(1, SURE, 8, np.zeros(32, np.uint8)), 0.0
        for query in range(150):
            there += by
            values = np.clip(draws.normal(20 + there, 5, 32), 0, 255).astype(np.uint8)
            step = trail.add(np.zeros(2), values, False, 1 - draws.random(), query)
            assert step.descent is None  # each answer is another network's
            if step.drift and trail.drift.add(step.drift, purse):
                return True
        return False

    assert moves(0.5)
    assert not moves(0.0)


def test_low_margins_are_those_of_the_tenth_where_a_network_is_never_sure():
    margins = Margins()
    assert margins.low(0.4)
    for value in np.linspace(0.1, 0.3, 64):
        margins.usual(float(value))
    assert not margins.low(0.13)
    assert margins.low(0.11)
    margins.restart()
    assert margins.low(0.4)
    p = np.array([[0.7, 0.2, 0.1]])
    assert Margins.of(np.log(p)) == pytest.approx(0.5)


def test_accounts_are_bounded_and_whoever_is_unknown_begins_with_what_was_forgotten():
    now = [0.0]
    accounts = Accounts(16, lambda: now[0], fade=100.0)
    for n in range(16):
        accounts.of(f"{n}").near = 10.0 + n
    accounts.of("15").evidence = (0.5, 0.5)
    accounts.of("new")
    assert len(accounts) == 15  # the two that weigh least are gone
    assert accounts.of("new").near == accounts.of("0").near == 11.0
    assert worth(accounts.of("15").evidence) == 0.5
    for n in range(100):
        accounts.of(f"flood {n}").near = 1000.0
    assert accounts.of("15").near >= 25.0
    assert worth(accounts.of("15").evidence) >= 0.5
    now[0] += 100.0
    assert accounts.of("flood 99").near == pytest.approx(1000 / np.e)
    assert accounts.floor < 1


def test_a_bet_wins_on_small_values_and_loses_on_large_ones():
    assert worth(bet(NOTHING, 1e-3, [1e-3])) > 5e-3
    assert worth(bet(NOTHING, 1e-3, [1.0])) < 1e-3
    assert worth(bet(NOTHING, 1e-3, [0.0, 1.0])) < 1e9
