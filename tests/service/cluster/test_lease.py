"""Terms and leases: a follower never goes back and answers only with a lease."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2d.service.cluster.lease import Follower, ReplicaReport, Tally, Terms


@pytest.mark.parametrize("every", [4.0, 10.0, 60.0, 86_400.0])
def test_within_a_period_all_have_followed_or_answer_nobody(every):
    terms = Terms.of(every)
    assert terms.prepare + terms.lease <= 0.8 * every
    assert terms.beat < terms.lease / 2
    assert Terms.of(every, 3.0).lease == 3.0


numbers = st.integers(1, 6)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("hear"), numbers, numbers, st.floats(0.0, 5.0)),
        st.tuples(st.just("load"), numbers, numbers, st.floats(0.0, 5.0)),
    ),
    max_size=40,
)


@given(steps)
def test_a_follower_never_goes_back_and_answers_only_with_a_lease(script):
    follower, now, asked_last = Follower(Terms(lease=4.0), 1), 0.0, -9.0
    follower.loaded = 1
    wanted: set[int] = set()
    for what, live, spare, waited in script:
        before = (follower.live, follower.known)
        asked, now = now, now + waited
        if what == "hear":
            wanted.add(follower.hear(live, spare, asked))
            asked_last = asked if live >= before[1] else asked_last
        elif live in wanted:  # only what was asked for is loaded
            follower.load(live)
        assert (follower.live, follower.known) >= before
        assert follower.live <= follower.known
        if follower.may_answer(now):
            assert follower.live == follower.known
            assert now < asked_last + 4.0


def test_an_answer_from_a_vault_that_was_put_back_extends_no_lease():
    follower = Follower(Terms(lease=4.0), 3)
    assert follower.hear(3, 0, 0.0) == 0
    assert follower.may_answer(3.9)
    assert follower.hear(2, 0, 3.0) == 0
    assert not follower.may_answer(4.0)


def test_a_refused_generation_is_not_fetched_again_unless_it_is_live():
    follower = Follower(Terms(), 1)
    assert follower.hear(1, 2, 0.0) == 2
    follower.refuse(2, "no")
    assert follower.hear(1, 2, 0.1) == 0
    assert follower.hear(2, 0, 0.2) == 2
    assert not follower.may_answer(0.3)
    follower.load(2)
    assert follower.may_answer(0.3)


def test_inputs_are_counted_once_however_often_a_report_of_them_arrives():
    tally = Tally()

    def fresh(inputs: int, term: str = "now", replica: str = "a") -> int:
        return tally.fresh(ReplicaReport(replica, term, inputs=inputs), "now")

    # The network parts: polls that nobody heard an answer to arrive together when it is back.
    assert [fresh(0, ""), fresh(5), fresh(5), fresh(9), fresh(7), fresh(12)] == [0, 5, 0, 4, 0, 3]
    assert fresh(100, "before") == 88
    assert fresh(40, replica="b") == 40
    assert fresh(1000, "before", "c") == 0  # another coordinator counted those
    assert fresh(1003, "now", "c") == 3
    for i in range(10_000):
        fresh(1, replica=f"r{i}")
    assert len(tally._counted) == 10_000
