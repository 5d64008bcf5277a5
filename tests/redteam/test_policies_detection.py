"""Attacks before a monitor: who is seen first, and how a search evades."""

import itertools

import numpy as np
import pytest
import torch

from g2d.attacks.query import SpentError, clock_square
from g2d.redteam.policies.detection import (
    Alarms,
    Detection,
    Jitter,
    Rejection,
    Shown,
    client_of,
    warm,
)
from g2d.redteam.query_log import QueryLog, by_count
from g2d.tasks.splits import Split

EPS = 0.1


class Counting:
    """A watch that alarms of a client's n-th query."""

    def __init__(self, alarms, after, named=True):
        self.alarms, self.after, self.named, self.asked = alarms, after, named, {}

    def observe(self, inputs, logits, client):
        assert inputs.shape[0] == logits.shape[0] == 1
        self.asked[client] = self.asked.get(client, 0) + 1
        if self.asked[client] == self.after:
            more = {"client": client} if self.named else {}
            self.alarms("query_attack", "too many", level="warning", evidence={}, **more)


def bright(level):
    return lambda x: torch.stack([level - x.mean((1, 2, 3)), torch.zeros(len(x))], 1)


def pictures(count):
    return Split(torch.full((count, 1, 4, 4), 0.5), torch.zeros(count, dtype=torch.long))


def attacked(level, after, count=3, accounts=1, named=True, budget=50):
    split, alarms = pictures(count), Alarms()
    watch = Counting(alarms, after, named)
    shown = Shown(by_count([bright(level)], None), count, watch, alarms, accounts)
    log = QueryLog(shown, split, eps=EPS, budget=budget, bounds=(0.0, 1.0))
    shown.follow(log)
    generator = torch.Generator().manual_seed(0)
    clock_square(log, split.x, split.y, eps=EPS, budget=budget, generator=generator)
    return shown, log, watch


def test_each_attacker_is_seen_at_the_query_that_raised_its_alarm_and_the_search_ends():
    shown, log, watch = attacked(0.9, after=7)
    assert shown.seen.tolist() == [7, 7, 7]
    assert int(log.spent.max()) == 7
    assert set(watch.asked) == {client_of(lane, 0) for lane in range(3)}
    found = Detection.of(shown.seen, log.first)
    assert (found.before.value, found.unseen.value, found.never.value) == (1, 0, 0)
    assert found.median == 7


def test_who_wins_before_an_alarm_is_unseen():
    shown, log, _ = attacked(0.52, after=45)
    assert bool((log.first > 0).all())
    found = Detection.of(shown.seen, log.first)
    assert (found.before.value, found.unseen.value, found.never.value) == (0, 1, 1)
    assert found.median is None


def test_accounts_in_turn_are_clients_of_their_own():
    shown, _, watch = attacked(0.9, after=3, count=1, accounts=5)
    assert len(watch.asked) == 5
    assert shown.seen.tolist() == [11], "the first of five to ask three times"


def test_an_alarm_that_names_nobody_counts_for_who_raised_it():
    shown, _, _ = attacked(0.9, after=4, count=2, named=False)
    assert shown.seen.tolist() == [4, 4]


def test_shares_are_of_those_that_were_seen_or_won():
    seen = torch.tensor([5, 0, 9, 0, 3])
    first = torch.tensor([7, 4, 2, 0, 0])
    found = Detection.of(seen, first)
    assert (found.before.value, found.before.n) == (0.5, 4)
    assert (found.unseen.value, found.never.value) == (0.4, 0.4)


def sent(log):
    asked = []

    def api(x, lanes):
        asked.append(x.clone())
        return log(x, lanes)

    return api, asked


def test_jitter_stays_in_the_ball_and_moves_every_query():
    split = pictures(2)
    log = QueryLog(by_count([bright(0.9)], None), split, eps=EPS, budget=20, bounds=(0.0, 1.0))
    api, asked = sent(log)
    generator = torch.Generator().manual_seed(1)
    jitter = Jitter(api, split.x, eps=EPS, bounds=(0.0, 1.0), strength=0.5, generator=generator)
    for _ in range(3):
        jitter(split.x, torch.arange(2))
    assert not torch.equal(asked[0], asked[1])
    for point in asked:
        assert 0 < float((point - split.x).abs().max()) <= 0.5 * EPS + 1e-6
    far = jitter.moved(split.x + 1, torch.arange(2), torch.tensor([1.0, 1.0]))
    assert float((far - split.x).abs().max()) <= EPS + 1e-6


class Eyes:
    """A copy of a detector that matches what was sent within a distance."""

    def __init__(self, within):
        self.within, self.known = within, []

    def near(self, x, client):
        return any(np.abs(x - other).max() < self.within for other in self.known)

    def sent(self, x, client):
        self.known.append(x.copy())


@pytest.mark.parametrize(("within", "refused"), [(0.05, 0), (1.0, 4)])
def test_rejection_draws_until_the_copy_matches_nothing_or_gives_up(within, refused):
    split = pictures(1)
    log = QueryLog(by_count([bright(0.9)], None), split, eps=EPS, budget=20, bounds=(0.0, 1.0))
    api, asked = sent(log)
    generator = torch.Generator().manual_seed(1)
    jitter = Jitter(api, split.x, eps=EPS, bounds=(0.0, 1.0), strength=0.0, generator=generator)
    evading = Rejection(jitter, api, Eyes(within), 1)
    for _ in range(5):
        evading(split.x, torch.tensor([0]))
    assert (evading.sent, evading.refused) == (5, refused)
    assert torch.equal(asked[0], split.x), "nothing was sent yet"
    apart = [float((a - b).abs().max()) for a, b in itertools.pairwise(asked)]
    assert refused or min(apart) >= within


def test_honest_queries_come_from_many_clients_and_their_alarms_are_counted():
    alarms = Alarms()
    watch = Counting(alarms, after=2)
    assert warm(watch, bright(0.9), pictures(9).x, alarms, clients=6) == 3
    assert len(watch.asked) == 6
    assert alarms.now() > 0
    shown = Shown(by_count([bright(0.9)], None), 1, watch, alarms)
    shown.seen[0] = 1
    with pytest.raises(SpentError):
        shown(pictures(1).x, torch.tensor([0]), torch.tensor([1]))


@pytest.mark.parametrize(
    ("detector", "attack", "budget"),
    [("ours", "square", 60), ("ours", "oars", 15), ("Blacklight", "jitter 1", 60)],
)
def test_the_benchmark_shows_searches_to_real_monitors(context, detector, attack, budget):
    from benchmarks.monitoring.detecting import Detecting

    detecting = Detecting(context, images=5, budget=budget)
    row = detecting.measure(detector, attack)
    assert (row["n"], row["honest"]) == (len(row["seen"]), 360)
    assert row["false_alarms"] == 0
    seen, first = torch.tensor(row["seen"]), torch.tensor(row["first"])
    assert row["before"]["value"] == Detection.of(seen, first).before.value
    assert ("sent_all_the_same" in row) == (attack == "oars")
    assert f"detected, {detector}, {attack}" in detecting.rows()
