"""Bounds of shares, against values that are known."""

import pytest

from g2d.core.shares import highest_share, largest_drop, least_examples, shown_drop


def test_nothing_of_few_leaves_much():
    """28 of 28 right: 1 - 0.05^(1/28) = 10.15 % (Clopper-Pearson, one-sided 95 %)."""
    assert highest_share(0, 28) == pytest.approx(0.101474, abs=1e-5)
    assert highest_share(0, 28) == pytest.approx(1 - 0.05 ** (1 / 28))
    assert highest_share(4, 400) == pytest.approx(0.022735, abs=1e-5)
    assert highest_share(3, 3) == highest_share(0, 0) == 1.0


def test_a_paired_drop_is_bounded_exactly_where_few_pairs_differ():
    assert largest_drop(0, 0, 28) == pytest.approx(0.101474, abs=1e-5)
    assert largest_drop(4, 0, 400) == pytest.approx(0.022735, abs=1e-5)
    # One lost and one won, or only won: no less uncertain than where nothing differs.
    assert largest_drop(1, 1, 28) == largest_drop(0, 1, 28) == largest_drop(0, 0, 28)
    assert largest_drop(1, 0, 1) == largest_drop(0, 0, 0) == 1.0


def test_where_many_differ_the_bound_is_the_normal_one_as_ever():
    # (60 - 50) / 5000 + 1.6449 * sqrt(110 / 5000 - 0.002^2) / sqrt(5000)
    assert largest_drop(60, 50, 5000) == pytest.approx(0.0054504, abs=2e-6)
    assert largest_drop(30, 0, 5000) == pytest.approx(0.0078, abs=0.0006)  # exact: 0.0082


def test_few_pairs_are_held_against_what_they_can_show():
    """Of 58 none lost leaves 1 - 0.05^(1/58) = 5.034 %, of 59 4.951 %; one lost of 59 7.79 %."""
    assert shown_drop(58, 0.05) == pytest.approx(0.050339, abs=1e-5)
    assert shown_drop(59, 0.05) == shown_drop(5000, 0.05) == 0.05
    assert largest_drop(1, 0, 59) == pytest.approx(0.077898, abs=1e-5)
    for n in (1, 2, 10, 58):
        assert largest_drop(0, 0, n) <= shown_drop(n, 0.05) < largest_drop(1, 0, n)


def test_how_many_examples_show_that_nothing_is_lost():
    assert least_examples(0.01) == 299
    assert highest_share(0, 299) <= 0.01 < highest_share(0, 298)
    assert least_examples(0.0) is None
    assert least_examples(1.0) == 1
