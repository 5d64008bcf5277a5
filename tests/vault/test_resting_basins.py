"""Which basins a candidate is to begin in: unseen ones, then the one seen longest ago."""

from g2d.vault.basins import Stock


def test_what_nobody_has_seen_goes_first():
    assert Stock((0, 1, 2), frozenset(), {0: 4}).rested == (1, 2)


def test_then_the_one_whose_newest_generation_is_the_oldest():
    assert Stock((0, 1, 2), frozenset(), {0: 40, 1: 3, 2: 25}).rested == (1,)


def test_a_retired_one_never_and_where_there_is_none_any():
    assert Stock((0, 1), frozenset({1}), {0: 4}).rested == (0,)
    assert Stock((), frozenset(), {}).rested == ()
