"""Serving policies under attack: the simulated service, several accounts, what finds are worth."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from g2d.core.seeds import seed_of
from g2d.protect.answers import combined
from g2d.redteam.policies.attackers import ATTACKERS, search
from g2d.redteam.policies.ensemble import Vote
from g2d.redteam.policies.guarding import told_of
from g2d.redteam.policies.service import Scheme, Service
from g2d.redteam.policies.worth import Finds
from g2d.redteam.query_log import QueryLog
from g2d.redteam.scoring import difference, share
from g2d.rotation.policy import policy_of
from g2d.rotation.snapshot import Snapshot
from g2d.rotation.window import Window
from g2d.settings import ServeSettings
from g2d.tasks.splits import Split

EPS = 0.1


def step(level):
    """A network of grey images that errs where they are brighter than its level; 0 is right."""
    return lambda x: torch.stack([level - x.mean((1, 2, 3)), torch.zeros(len(x))], 1)


def service(levels, policy="global", *, lanes=1, live=1, every=None, pin=0, width=None, **more):
    settings = ServeSettings(policy=policy, live=live, hold=1e6, period=float(every or 0), **more)
    start = torch.zeros(lanes, dtype=torch.long)
    scheme = Scheme("it", settings, every, pin)
    return Service([step(level) for level in levels], scheme, start, width or scheme.live, 0)


def grey(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()


def margins_of(made, lanes, numbers):
    """Which network answers a black image, told by its level."""
    x = grey(*[0.0] * len(lanes))
    return made.answer(x, torch.tensor(lanes), torch.tensor(numbers))[0][:, 0].tolist()


def test_each_lane_has_a_clock_of_its_own():
    made = service([0.1, 0.2, 0.3], lanes=2, every=10)
    assert margins_of(made, [0, 1], [10, 11]) == pytest.approx([0.1, 0.2])
    assert margins_of(made, [0, 1, 0], [21, 1, 31]) == pytest.approx([0.3, 0.1, 0.1])
    assert made.passes == 5


def test_all_schemes_begin_at_the_newest_of_one_window():
    for policy, live in (("global", 1), ("vote", 2), ("sticky", 3)):
        made = service([0.1, 0.2, 0.3], policy, live=live, width=3)
        newest = {"global": 0.3, "vote": None, "sticky": None}[policy]
        (found,) = margins_of(made, [0], [1])
        assert newest is None or found == pytest.approx(newest)
        assert made.scheme.passes == (2 if policy == "vote" else 1)


def test_a_sticky_client_stays_and_others_see_other_networks():
    made = service([0.1, 0.2, 0.3, 0.4], "sticky", live=4, every=1000)
    first = margins_of(made, [0], [1])
    assert all(margins_of(made, [0], [q]) == first for q in (2, 50, 999))
    x, one = grey(0.0), torch.tensor([0])
    seen = {round(float(made.ask(x, one, one + 1, client=f"{k}")[0, 0]), 3) for k in range(30)}
    assert seen == {0.1, 0.2, 0.3, 0.4}


def test_an_alarm_pins_the_account_and_rotates_the_others():
    levels = [0.1 * k for k in range(1, 9)]
    free = service(levels, "sticky", live=2, every=10)
    pinned = service(levels, "sticky", live=2, every=10, pin=5)
    numbers = range(1, 61)
    met = [len({margins_of(made, [0], [q])[0] for q in numbers}) for made in (free, pinned)]
    assert met[0] > 1
    assert met[1] == 1
    x, one = grey(0.0), torch.tensor([0])
    others = [
        round(float(made.ask(x, one, one + 1, client="other")[0, 0]), 3) for made in (free, pinned)
    ]
    assert others[1] > others[0] - 1e-9, "one rotation more has come"


def test_alarms_about_many_accounts_rotate_as_often_as_a_service_would():
    """The default of `[monitors] rotations` is one an hour; an attacker asks once a second."""
    made, one = service([0.1, 0.2, 0.3, 0.4], "sticky", pin=2), torch.tensor([0])
    for account, first in ((0, 1), (1, 10), (2, 20), (3, 4000)):
        made.speak(one, torch.tensor([account]))
        margins_of(made, [0], [first])
        margins_of(made, [0], [first + 1])
        newest = float(made.ask(grey(0.0), one, one + first + 1, client=f"new {account}")[0, 0])
        assert newest == pytest.approx(0.3 if account == 3 else 0.2)


def test_the_search_under_sticky_goes_on_where_a_tick_did_not_move_it():
    """Pinned from its first query it meets one network, whatever the clock says."""
    sizes, split = {}, Split(torch.full((1, 1, 12, 12), 0.5), torch.tensor([0]))
    for policy in ("sticky", "global"):
        made, points = service([9.0] * 8, policy, every=40, pin=1), []
        answer = made.answer

        def noted(x, lanes, numbers, points=points, answer=answer):
            points.append(x.clone())
            return answer(x, lanes, numbers)

        made.answer = noted
        let("clock", made, split, 80)
        after = zip(points[41:50], points[40:49], strict=True)
        sizes[policy] = max(int((one != before).sum()) for one, before in after)
    assert sizes["sticky"] <= 2 < sizes["global"]


def test_answers_are_told_in_the_form_of_the_settings():
    told = {
        form: service([0.456], answers=form).ask(grey(0.2), torch.tensor([0]), torch.tensor([1]))
        for form in ("scores", "rounded", "label", "aaa")
    }
    assert told["scores"][0, 0] == pytest.approx(0.256)
    assert told["rounded"].tolist() == [[pytest.approx(0.26), 0.0]]
    assert told["label"].tolist() == [[1.0, 0.0]]
    assert int(told["aaa"].argmax()) == 0
    assert float(told["aaa"][0, 0] - told["aaa"][0, 1]) != pytest.approx(0.256)


def test_a_vote_as_a_model_is_what_the_service_combines():
    made = service([0.1, 0.5, 0.9], "vote", live=3)
    x = grey(0.0, 0.4, 0.8)
    scores = made.ask(x, torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]))
    models = [step(0.1), step(0.5), step(0.9)]
    assert torch.allclose(scores, Vote(models)(x), atol=1e-5)
    apart = combined([model(x).numpy() for model in models])
    assert np.allclose(scores.numpy(), apart)


def log_of(made, split, budget, beyond=False):
    return QueryLog(made.answer, split, eps=EPS, budget=budget, bounds=(0.0, 1.0), beyond=beyond)


def pictures(count):
    return Split(grey(*[0.5] * count), torch.zeros(count, dtype=torch.long))


def let(name, made, split, budget):
    log = log_of(made, split, budget)
    said = search(ATTACKERS[name], made, log, eps=EPS, bounds=(0.0, 1.0), classes=2, seed=0)
    return log, said


def test_twenty_accounts_find_the_weakest_of_what_is_live():
    levels = [0.9, 0.9, 0.9, 0.505]
    won = {}
    for name in ("clock", "accounts-20"):
        made = service(levels, "sticky", lanes=8, live=4)
        log, _ = let(name, made, pictures(8), 60)
        assert int(log.spent.max()) <= 60
        won[name] = log.asr(60).value
    assert won["accounts-20"] == 1.0 > won["clock"]
    assert set(made.speaking.tolist()) != {0}, "the best account goes on"


def test_more_accounts_than_queries_are_refused():
    made = service([0.9, 0.8], lanes=2, every=10)
    with pytest.raises(Exception, match="20 accounts do not fit into 10 queries"):
        let("accounts-20", made, pictures(2), 60)


@pytest.mark.parametrize(("policy", "moves", "noisy"), [("global", True, False),
                                                        ("random", False, True)])  # fmt: skip
def test_who_asks_again_infers_rotations_and_gives_up_where_answers_are_noise(policy, moves, noisy):
    levels = [0.9, 0.8, 0.7, 0.95, 0.75, 0.85]
    made = service(levels, policy, lanes=6, live=3, every=100)
    log, said = let("inferred", made, pictures(6), 300)
    assert log.asr(300).value == 0
    assert (said["moves_inferred"] == 2) == moves
    assert (said["gave_up_inferring"] == 1) == noisy


def found_by(made, split, value, at=1):
    """A log in which every lane has found the same grey."""
    log = log_of(made, split, 10)
    lanes = torch.arange(len(split))
    for number in range(at):
        log(grey(*[value if number == at - 1 else 0.5] * len(split)), lanes)
    assert bool((log.first == at).all())
    return Finds(made, log, 10, eps=EPS, bounds=(0.0, 1.0)).told()


def test_without_a_rotation_a_find_goes_on_working_on_everybody():
    told = found_by(service([0.55], lanes=3), pictures(3), 0.58)
    assert {name: rate["value"] for name, rate in told.items()} == dict.fromkeys(told, 1.0)
    assert (told["later"]["low"], told["later"]["n"]) == (share(3, 3).low, 3)


def test_a_rotation_ends_a_find_for_the_finder_and_for_others():
    made = service([0.55, *[0.9] * 20], lanes=3, every=5)
    told = {name: rate["value"] for name, rate in found_by(made, pictures(3), 0.58).items()}
    assert (told["again"], told["replayed"]) == (1.0, 1.0)
    assert told["later"] == told["later_any"] == told["replayed_next"] == 0.0


def test_under_sticky_others_see_the_finders_network_by_chance_until_it_has_gone():
    made = service([0.55, 0.55, 0.9, 0.9, *[0.9] * 20], "sticky", lanes=12, live=4, every=50)
    log = log_of(made, pictures(12), 10)
    log(grey(*[0.58] * 12), torch.arange(12))
    assert 0 < int((log.first > 0).sum()) < 12
    told = Finds(made, log, 10, eps=EPS, bounds=(0.0, 1.0)).told()
    assert told["again"]["value"] == 1.0
    assert 0.2 < told["replayed"]["value"] < 0.8
    assert told["replayed_next"]["value"] < told["replayed"]["value"]
    assert told["replayed_gone"]["value"] == 0.0


def test_random_wins_at_times_and_any_of_ten_nearly_always():
    made = service([0.55, 0.9], "random", lanes=40, live=2)
    log = log_of(made, pictures(40), 10)
    log(grey(*[0.58] * 40), torch.arange(40))
    told = Finds(made, log, 10, eps=EPS, bounds=(0.0, 1.0)).told()
    assert 0.3 < told["again"]["value"] < 0.7
    assert told["again_any"]["value"] > 0.9


def test_keyed_tells_nothing_new_to_who_asks_again():
    made = service([0.55, 0.9], "keyed", lanes=40, live=2)
    log = log_of(made, pictures(40), 10)
    log(grey(*[0.58] * 40), torch.arange(40))
    told = Finds(made, log, 10, eps=EPS, bounds=(0.0, 1.0)).told()
    assert told["again"]["value"] == told["again_any"]["value"] == 1.0


def test_nothing_found_is_worth_nothing():
    made = service([0.9])
    log = log_of(made, pictures(1), 10)
    assert Finds(made, log, 10, eps=EPS, bounds=(0.0, 1.0)).told() == {}


def test_a_paired_difference_has_an_honest_interval():
    ours, theirs = torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 1, 0, 0])
    found = difference(ours, theirs)
    assert (found.value, found.n) == (0.25, 4)
    assert found.low < 0 < found.high
    same = difference(theirs, theirs)
    assert same.low < same.value == 0 < same.high
    many = difference(torch.ones(1000), torch.zeros(1000))
    assert many.low > 0.95
    assert difference(torch.zeros(0), torch.zeros(0)).n == 0


def test_what_a_suspect_is_pinned_to_can_answer_nobody_else():
    levels = [0.1 * k for k in range(1, 9)]
    seen = {}
    for apart in (False, True):
        settings = ServeSettings(policy="sticky", live=4, hold=1e6)
        scheme = Scheme("it", settings, 1000, pin=5, apart=apart)
        made = Service([step(level) for level in levels], scheme, torch.tensor([0]), 4, 0)
        own = [margins_of(made, [0], [q])[0] for q in range(1, 9)]
        assert len(set(own)) == 1
        x, one = grey(0.0), torch.tensor([0])
        others = [float(made.ask(x, one, one + 9, client=f"{k}")[0, 0]) for k in range(40)]
        seen[apart] = own[0] in others
    assert seen == {False: True, True: False}


class Counting:
    """A guard that raises an alarm about an account's n-th query."""

    def __init__(self, after):
        self.after, self.asked, self.swaps = after, {}, 0

    def look(self, x, scores, client, seconds):
        assert x.shape[0] == scores.shape[0] == 1
        self.asked[client] = self.asked.get(client, 0) + 1
        return {client: True} if self.asked[client] == self.after else {}

    def swapped(self):
        self.swaps += 1


def test_whom_a_guard_sees_is_pinned_and_shown_no_more():
    settings = ServeSettings(policy="sticky", live=2, hold=1e6, period=10.0)
    levels, start = [0.1 * k for k in range(1, 9)], torch.zeros(2, dtype=torch.long)
    guards = [Counting(5), Counting(1000)]
    made = Service(
        [step(level) for level in levels], Scheme("it", settings, 10), start, 2, 0, guards
    )
    met = list(zip(*(margins_of(made, [0, 1], [q, q]) for q in range(1, 61)), strict=True))
    assert made.seen.tolist() == [5, 0]
    assert [len(set(one)) > 1 for one in met] == [False, True]
    assert guards[0].asked == {"account 0": 5}
    assert guards[1].asked == {"account 0": 60}
    assert guards[1].swaps == 5
    assert guards[0].swaps == 6, "one rotation more, by the alarm"


def test_an_alarm_about_somebody_else_has_not_seen_the_attacker():
    told = [{"honest 3": False}, {"account 0": False}, {"honest 4": True}]
    for alarms, seen, level in zip(told, (0, 1, 0), (0.1, 0.1, 0.2), strict=True):
        guard = SimpleNamespace(look=lambda *_, alarms=alarms: alarms, swapped=lambda: None)
        settings, start = ServeSettings(policy="sticky", live=1, hold=1e6), torch.tensor([0])
        made = Service([step(0.1), step(0.2)], Scheme("it", settings), start, 1, 0, [guard])
        margins_of(made, [0], [1])
        assert made.seen.tolist() == [seen]
        newest = made.ask(grey(0.0), start, start + 2, client="new")
        assert float(newest[0, 0]) == pytest.approx(level), "who asks for a rotation gets one"


def test_who_wins_before_an_alarm_is_unseen():
    seen, first = torch.tensor([5, 0, 9, 0, 3]), torch.tensor([7, 4, 2, 0, 0])
    told = told_of(seen, first)
    assert (told["seen_before"]["value"], told["seen_before"]["n"]) == (0.5, 4)
    assert (told["won_unseen"]["value"], told["seen_at"]) == (0.4, 5.0)
    assert "seen_at" not in told_of(torch.zeros(2), first[:2])


@pytest.mark.parametrize("policy", ["global", "sticky", "vote", "random"])
def test_the_simulated_service_chooses_as_the_services_own_window_does(policy):
    """The same policy, secret and clock, through rotations and an alarm."""
    settings = ServeSettings(policy=policy, live=3, hold=1e6, period=10.0)
    live, now = (1 if policy == "global" else 3), [0.0]
    models = [step(0.1 * k) for k in range(1, 13)]
    made = Service(models, Scheme("it", settings, 10, pin=15), torch.tensor([0]), live, 7)
    own = policy_of(settings, seed_of(7, "secret", 0).to_bytes(16, "big"), lambda: now[0],
                    fresh=b"red team")  # fmt: skip
    snapshots = [Snapshot(k, lambda x: (0, x), expires=math.inf) for k in range(1, 13)]
    window, newest = Window(snapshots[:live], own, live), live
    for number in range(1, 51):
        now[0] = float(number)
        if number > 1 and number % 10 == 1:
            window.swap(snapshots[newest])
            newest += 1
        window.tend(0.0)
        chosen = tuple(s.number for s in window.choose("account 0", b""))
        _, place = made.answer(grey(0.0), torch.tensor([0]), torch.tensor([number]))
        assert (int(place) + 1 if len(chosen) == 1 else int(place)) == (
            chosen[0] if len(chosen) == 1 else -1
        )
        if number == 15:
            window.pin("account 0")
            window.swap(snapshots[newest])
            newest += 1
