"""The rollout: a commit waits until all have loaded, and nobody is waited for without end."""

from __future__ import annotations

import threading
import time

import pytest

from g2d.errors import RefusedError
from g2d.service.cluster.lease import Follower, ReplicaReport, Terms
from g2d.service.cluster.rollout import RolloutLoader, Roster
from stand_ins import Fake, into


def roster(terms: Terms) -> tuple[Roster, list[tuple[str, dict]]]:
    told: list[tuple[str, dict]] = []
    return Roster(terms, into(told)), told


def test_a_spare_that_was_given_up_does_not_bar_an_older_one():
    """A coordinator that starts again may judge anew what is kept, and take a lower number."""
    follower = Follower(Terms(), 1)
    assert follower.hear(1, 5, 0.0) == 5
    follower.load(5)
    assert follower.hear(1, 4, 0.1) == 4
    follower.load(4)
    assert follower.hear(4, 0, 0.2) == 0
    assert follower.may_answer(0.3)
    made, _ = roster(Terms())
    made.greet(ReplicaReport("a", live=1, loaded=5))
    assert made.pending(4) == ["a"]


def test_a_commit_waits_until_all_have_loaded():
    made, told = roster(Terms(lease=600.0, prepare=120.0))
    announced: list[int] = []
    loader = RolloutLoader(Fake(), made, announced.append, lambda: False)
    for name in "ab":
        made.greet(ReplicaReport(name, live=1))
    assert loader.load(2, 1).number == 2
    assert announced == [2]
    done = threading.Thread(target=loader.verify, args=(2, 1))
    done.start()
    made.greet(ReplicaReport("a", live=1, loaded=2))
    time.sleep(0.05)
    assert done.is_alive()
    made.greet(ReplicaReport("b", live=1, loaded=2))
    done.join(60)
    assert not done.is_alive()
    made.roll(2)
    made.greet(ReplicaReport("a", live=2))
    assert not any(event == "rolled out" for event, _ in told)
    made.greet(ReplicaReport("b", live=2))
    assert told[-1][1]["replicas"] == 2
    assert made.await_rolled(2)


def test_one_that_is_late_or_refuses_holds_nobody_up_but_all_do():
    made, told = roster(Terms(lease=600.0, prepare=0.1))
    made.greet(ReplicaReport("a", live=1, loaded=2))
    made.greet(ReplicaReport("late", live=1))
    made.greet(ReplicaReport("bad", live=1, refused={2: "digest"}))
    made.await_loaded(2, lambda: False)
    texts = " ".join(facts.get("text", "") for _, facts in told)
    assert "bad refused: digest" in texts
    assert "not loaded by 1 of 3" in texts
    for name in ("a", "late"):
        made.leave(name)
    with pytest.raises(RefusedError, match="every replica refused generation 2: digest"):
        made.await_loaded(2, lambda: False)


def test_one_that_is_away_is_forgotten_after_its_lease():
    now = [0.0]
    made = Roster(Terms(lease=4.0, beat=1.0), lambda *_: None, lambda: now[0])
    made.greet(ReplicaReport("a", live=1))
    assert made.summary()["count"] == 1
    now[0] = 5.1
    made.await_loaded(2, lambda: False)
    assert made.summary()["count"] == 0
