"""A backdoor by model replacement sends what its attackers gain most by, whatever the rule."""

import numpy as np

from g2d.attacks.byzantine import Seen, replaced

GOAL = np.float32([3.0, 0.0])
HONEST = np.float32([[0.0, 1.0]] * 4)


def near(goal):
    return lambda aggregate: -float(np.square(aggregate - goal).sum())


def test_the_mean_is_replaced_as_far_as_that_is_worth_most():
    seen = Seen(HONEST, 1, lambda X: X.mean(0))
    sent = replaced(GOAL, 5, 1, seen, near(GOAL + HONEST[0]))
    np.testing.assert_allclose(sent, 5 * GOAL)  # n / f of it: the aggregate has it whole
    sent = replaced(GOAL, 5, 1, seen, near(0.3 * GOAL + HONEST[0]))
    np.testing.assert_allclose(sent, 1.25 * GOAL)  # what would go too far is not sent


def test_of_what_is_worth_as_much_the_shortest_is_sent():
    seen = Seen(HONEST, 1, lambda X: np.median(X, 0))
    sent = replaced(GOAL, 5, 1, seen, near(GOAL))
    assert np.linalg.norm(sent) <= 1.0 + 1e-6  # no longer than an honest one: nothing moves it
