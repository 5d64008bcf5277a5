"""What no other network explains names the parts of a suspect; nobody is named who is none."""

import numpy as np
import pytest
import torch

from g2d.protect.trace import Frame, Likeness, Named, Null, compare, judge
from g2d.protect.trace.judgement import GENERATION, MEMBER, Group
from small_models import source

P, GENERATIONS, MEMBERS = 3000, 24, 12
TENSOR_OF = torch.arange(3).repeat_interleave(1000)
NAMES = tuple(
    [Named(GENERATION, i) for i in range(1, GENERATIONS + 1)]
    + [Named(MEMBER, i) for i in range(MEMBERS)]
)


class Basin:
    """A mean, a few directions that all share, and something of each network's own."""

    def __init__(self, seed=0):
        self.draws = source(seed)
        self.mean = 3 * self.normal(P)
        self.shared = self.normal(5, P)
        self.known = torch.stack([self.network() for _ in NAMES])

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.draws)

    def network(self):
        return self.mean + self.normal(5) @ self.shared + 0.3 * self.normal(P)

    def judged(self, suspect, closed=True, known=None, names=NAMES):
        found = compare(self.known if known is None else known, suspect, TENSOR_OF)
        return judge([Group(names, found)], closed=closed)


@pytest.fixture
def basin():
    """Anew for each test: what one draws must not depend on which others ran before it."""
    return Basin()


def pruned(suspect):
    return torch.where(suspect.abs() < suspect.abs().median(), 0.0, suspect)


def quantised(suspect):
    step = suspect.abs().max() / 7
    return (suspect / step).round() * step


ATTACKS = {
    "nothing": lambda s, basin: s,
    "pruned": lambda s, basin: pruned(s),
    "int4": lambda s, basin: quantised(s),
    "noisy": lambda s, basin: s + 0.5 * basin.normal(P),
    "shrunk": lambda s, basin: 0.9 * s,
    "tuned": lambda s, basin: s + 0.3 * basin.normal(5) @ basin.shared + 0.1 * basin.normal(P),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_leak_names_its_generation_and_no_neighbour(basin, attack):
    for place in (0, 7, GENERATIONS - 1):
        verdict = basin.judged(ATTACKS[attack](basin.known[place], basin))
        assert verdict.generations == (place + 1,)
        assert len(verdict.accused) == 1
        assert verdict.candidates[0].who == NAMES[place]
        assert f"made from generation {place + 1} (p" in str(verdict)


def test_a_member_is_called_one_and_no_generation(basin):
    verdict = basin.judged(basin.known[GENERATIONS + 3] + 0.2 * basin.normal(P))
    assert verdict.generations == ()
    assert "made from member 3 of the population" in str(verdict)
    assert str(verdict).endswith("and of no generation")


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_soup_names_its_parts_and_their_shares(basin, count):
    parts = list(range(2, 2 + count))
    verdict = basin.judged(basin.known[parts].mean(0) + 0.1 * basin.normal(P))
    assert verdict.generations == tuple(i + 1 for i in parts)
    assert len(verdict.accused) == count
    assert all(abs(c.share - 1 / count) < 0.1 for c in verdict.accused)
    assert "is a soup of" in str(verdict)


def test_a_soup_of_a_generation_and_a_member_says_which_is_which(basin):
    verdict = basin.judged(0.7 * basin.known[4] + 0.3 * basin.known[-1])
    assert verdict.generations == (5,)
    assert [str(c.who) for c in verdict.accused] == ["generation 5", "member 11 of the population"]


def innocents(basin, count):
    """Networks from elsewhere, with more or less of what the basin shares; some pruned."""
    for place in range(count):
        suspect = 3 * basin.normal(P) + (place % 3) * (basin.mean + basin.normal(5) @ basin.shared)
        yield pruned(suspect) if place % 2 else suspect


def test_nobody_is_accused_of_networks_from_elsewhere(basin):
    verdicts = [basin.judged(suspect) for suspect in innocents(basin, 200)]
    assert [str(v) for v in verdicts if v.accused] == []
    assert all("no accusation" in str(v) and "1e-06 or less is needed" in str(v) for v in verdicts)
    # Bonferroni over 36: each verdict's least p-value is below 0.1 once in ten, or more rarely.
    assert sum(v.candidates[0].p < 0.1 for v in verdicts) < 60


def test_nobody_is_accused_of_a_generation_that_is_not_known_any_more():
    basin = Basin(1)
    for place in range(len(NAMES)):
        rest = [i for i in range(len(NAMES)) if i != place]
        names = tuple(NAMES[i] for i in rest)
        verdict = basin.judged(basin.known[place], False, basin.known[rest], names)
        assert verdict.accused == (), (NAMES[place], str(verdict))


def test_scores_of_those_left_out_are_what_a_regression_without_them_gives(basin):
    left_out = 5
    rest = [i for i in range(len(NAMES)) if i != left_out]
    found = compare(basin.known, basin.known[left_out] + 1e-3 * basin.normal(P), TENSOR_OF)
    anew = compare(basin.known[rest], basin.known[left_out], TENSOR_OF)
    row = found.between[left_out]
    assert np.isnan(row[left_out])
    assert np.abs(row[rest] - anew.score).max() < 0.3


def test_a_drift_that_is_known_hides_nobody(basin):
    """Far along a direction of its own, a suspect is named once that direction is known."""
    way = basin.normal(1, P)
    suspect = basin.known[3] + 2 * way[0] + 0.1 * basin.normal(P)
    unaware, aware = (
        compare(basin.known, suspect, TENSOR_OF, drift) for drift in (None, way + 0.1 * basin.mean)
    )
    assert aware.score.shape == aware.coefficient.shape == (len(NAMES),)
    assert aware.between.shape == (len(NAMES), len(NAMES))
    assert aware.score[3] > 3 * unaware.score[3]
    assert aware.unexplained < unaware.unexplained
    assert judge([Group(NAMES, aware)]).generations == (4,)


def test_a_drift_away_from_all_members_hides_no_generation():
    draws, n = np.random.default_rng(3), len(NAMES)
    score = np.concatenate([draws.normal(size=GENERATIONS), draws.normal(-60, 5, MEMBERS)])
    score[4] = 40.0
    between = draws.normal(size=(n, n))
    np.fill_diagonal(between, np.nan)
    likeness = Likeness(score / 100, score / 100, score, between, np.eye(n), score, 0.1)
    assert Null.fit(score).p(40.0) > 1e-3
    for closed in (True, False):
        verdict = judge([Group(NAMES, likeness)], closed=closed)
        assert verdict.generations == (5,), str(verdict)
        assert len(verdict.accused) == 1
    assert verdict.accused[0].score > verdict.accused[0].needed


def test_where_no_innocent_generation_scores_below_zero_other_basins_say_nothing():
    # As of a soup of eight of eleven, balanced as a whole: the three left all score above zero.
    draws, n = np.random.default_rng(4), GENERATIONS + MEMBERS

    def group(own, members):
        score = np.concatenate([own, members])
        between = draws.normal(size=(n, n))
        np.fill_diagonal(between, np.nan)
        return Group(NAMES, Likeness(score / 200, score / 200, score, between, np.eye(n), score, 0))

    parts = draws.uniform(80, 160, GENERATIONS - 3)
    soup = group(np.concatenate([parts, [11.5, 24.4, 28.2]]), draws.normal(0, 6, MEMBERS))
    other = group(draws.normal(0, 1.5, GENERATIONS), draws.normal(0, 2, MEMBERS))
    verdict = judge([soup, other])
    assert verdict.generations == tuple(range(1, GENERATIONS - 2)), str(verdict)


def test_two_comparisons_name_what_either_does_and_count_as_twice_as_many_tests():
    # Noise by tensor tells the parts of a soup, noise by direction what was trained on.
    draws, n = np.random.default_rng(5), len(NAMES)

    def group(*guilty):
        score = draws.normal(size=n)
        score[list(guilty)] = 60.0
        between = draws.normal(size=(n, n))
        np.fill_diagonal(between, np.nan)
        gram = np.eye(n) + 0.1
        return Group(NAMES, Likeness(score / 100, score / 100, score, between, gram, score, 0.1))

    soup, tuned, neither = group(2, 5), group(7), group()
    assert judge([soup]).generations == (3, 6)
    assert judge([soup], [neither]).generations == judge([neither], [soup]).generations == (3, 6)
    both = judge([soup], [tuned])
    assert both.generations == (3, 6, 8)
    assert both.tests == judge([soup]).tests == n
    once, twice = ({c.who: c for c in v.candidates}[NAMES[2]] for v in (judge([soup]), both))
    assert twice.p / once.p == pytest.approx(2)
    assert twice.needed > once.needed
    assert judge([neither], [neither]).accused == ()


def test_too_few_networks_are_no_ground_to_judge_on():
    null = Null.fit(np.array([3.0, 5.0]))
    assert null.freedom == 0
    assert null.p(1e9) == 1.0
    basin = Basin(2)
    verdict = basin.judged(basin.known[0], known=basin.known[:1], names=NAMES[:1])
    assert verdict.accused == ()
    assert "too few networks to judge by" in str(verdict)


def test_a_null_grows_with_the_scores_below_zero_and_with_their_tail():
    draws = np.random.default_rng(0).normal(size=400)
    assert 1.0 <= Null.fit(draws).scale < 1.5
    assert 2.9 < Null.fit(3 * draws).scale < 4.5
    heavy = np.concatenate([draws, [-40.0]])
    assert Null.fit(heavy).scale > 10
    assert Null.fit(draws, [heavy]).scale > 10
    wide = Null.fit(draws)
    assert wide.wider(2.0).p(6.0) > wide.p(6.0)
    assert wide.p(wide.needed(1e-9)) == pytest.approx(1e-9, rel=1e-3)


def test_a_frame_lays_out_scalars_and_complex_numbers_and_balances_what_it_can():
    draws = source(0)
    states = [
        {
            "scale": torch.randn((), generator=draws),
            "waves": torch.randn(2, 3, dtype=torch.complex64, generator=draws),
            "half": torch.randn(4, generator=draws).half(),
        }
        for _ in range(3)
    ]
    frame = Frame(states[0], (), ("scale", "waves", "half"))
    vectors = frame.own(states)
    assert vectors.shape == (3, 1 + 12 + 4)
    assert frame.tensor_of.tolist() == [0] + [1] * 12 + [2] * 4
    assert torch.equal(vectors[1], frame.onto(states[1]))
