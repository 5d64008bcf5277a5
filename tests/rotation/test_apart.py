"""What a suspect is pinned to: left by all others at the next rotation, at no other moment."""

from __future__ import annotations

import math
import random

import pytest

from g2d.rotation.policy import policy_of
from g2d.rotation.snapshot import Snapshot
from g2d.rotation.sticky import Sticky
from g2d.rotation.window import Keeper, Window, left_at
from g2d.settings import ServeSettings

CLIENTS = [f"10.0.0.{k}" for k in range(80)]


def sticky(now=lambda: 0.0, **more) -> Sticky:
    settings = ServeSettings(policy="sticky", **({"period": 0.0, "hold": 1e6} | more))
    made = policy_of(settings, bytes(32), now)
    assert isinstance(made, Sticky)
    return made


def snapshot(number: int) -> Snapshot:
    return Snapshot(number, lambda x: (number, x), expires=math.inf)


def window(*numbers: int, live: int = 4, keeper: Keeper | None = None, **more) -> Window:
    return Window([snapshot(n) for n in numbers], sticky(**more), live, keeper=keeper)


def seen(live: Window, clients=CLIENTS) -> dict[str, int]:
    return {client: live.choose(client, b"")[0].number for client in clients}


def test_others_leave_at_the_next_swap_and_not_before_and_the_suspect_stays():
    live, calm = window(1, 2, 3, 4, period=1e6), window(1, 2, 3, 4, period=1e6)
    before = seen(live)
    assert seen(calm) == before
    suspect = next(client for client in CLIENTS if before[client] == 3)
    live.pin(suspect, "query_attack")
    assert seen(live) == before, "the moment of an alarm is told to nobody"
    live.swap(snapshot(5))
    calm.swap(snapshot(5))
    after, without = seen(live), seen(calm)
    assert after[suspect] == 3
    others = [client for client in CLIENTS if client != suspect]
    assert 3 not in {after[client] for client in others}
    assert all(after[client] >= before[client] for client in CLIENTS)
    elsewhere = [client for client in others if before[client] in (2, 4)]
    assert {c: after[c] for c in elsewhere} == {c: without[c] for c in elsewhere}
    assert live.status()["apart"] == [3]
    for number in (6, 7, 8):
        live.swap(snapshot(number))
        assert [c for c, n in seen(live).items() if n == 3] == [suspect]
    assert [each.number for each in live.now.held] == [3]
    assert live.now.left == ()


def test_what_was_left_stays_so_when_the_pin_ends_and_the_suspect_leaves_it_too():
    now = [0.0]
    live = window(1, 2, 3, 4, now=lambda: now[0], hold=10.0)
    before = seen(live)
    suspect = next(client for client in CLIENTS if before[client] == 3)
    live.pin(suspect)
    live.swap(snapshot(5))
    apart = seen(live)
    now[0] = 10.0
    freed = seen(live)
    assert freed[suspect] > 3
    assert {c: n for c, n in freed.items() if c != suspect} == {
        c: n for c, n in apart.items() if c != suspect
    }


def test_no_number_falls_whoever_computes_it_and_whatever_is_left():
    draws = random.Random(3)
    for size in (1, 2, 3, 5):
        policy, left, numbers = sticky(), (), list(range(1, size + 1))
        before = dict.fromkeys(CLIENTS, 0)
        pinned: dict[str, int] = {}
        for _ in range(30):
            restarted, own = sticky(), {}
            for client in CLIENTS:
                (own[client],) = policy.choose(client, b"", numbers, None, left)
                if client not in pinned:
                    again = restarted.choose(client, b"", numbers, None, left)
                    assert again == (own[client],), "a restart, or another replica"
                    assert own[client] not in left
                    assert own[client] in numbers
            assert all(own[client] >= before[client] for client in CLIENTS)
            assert all(own[client] == number for client, number in pinned.items())
            before = own
            if draws.random() < 0.4 and len(pinned) < 8:
                client = draws.choice(CLIENTS)
                policy.pin(client)
                pinned.setdefault(client, own[client])
            if draws.random() < 0.2:  # one that this service never had
                left = (*left, numbers[-1] + 1)
                numbers = [*numbers, numbers[-1] + 2][-size:]
            else:
                numbers = [*numbers, numbers[-1] + 1][-size:]
            left = left_at(policy, numbers, left)
            assert numbers[-1] not in left


def test_half_of_what_is_live_stays_open_and_the_newest_always():
    live = window(1, 2, 3, 4, 5, live=5)
    met = {number: client for client, number in seen(live).items()}
    for number in (4, 5, 2, 3):  # as they came under suspicion
        live.pin(met[number])
    live.swap(snapshot(6))
    assert live.now.left == (4, 5)
    live.swap(snapshot(7))
    assert live.now.left == (4, 5), "there is no room before one of these has retired"
    for number in (8, 9):
        live.swap(snapshot(number))
    assert live.now.left == (5,)
    assert set(seen(live).values()) <= {2, 3, 4, 5, 6, 7, 8, 9}
    assert window(1, live=1).status()["apart"] == []


def test_alone_a_generation_is_not_left_and_two_leave_one_another():
    for size, left in ((1, ()), (2, (1,))):
        live = window(1, live=size)
        live.choose("mallory", b"")
        live.pin("mallory")
        live.swap(snapshot(2))
        assert live.now.left == left
        assert seen(live, ["mallory", "alice"]) == {"mallory": 1, "alice": 2}


def test_it_is_kept_before_anybody_leaves_and_a_restart_brings_nobody_back():
    class Kept(Keeper):
        def __init__(self):
            self.left, self.open = (), []

        def leaving(self, left):
            self.left = tuple(left)
            self.open.append(live.now.left)

    keeper = Kept()
    live = window(1, 2, 3, 4, keeper=keeper)
    before = seen(live)
    suspect = next(client for client in CLIENTS if before[client] == 3)
    live.pin(suspect)
    live.swap(snapshot(5))
    assert (keeper.left, keeper.open) == ((3,), [()])
    after = seen(live)
    again = Window(
        [snapshot(n) for n in (2, 3, 4, 5)], sticky(), 4, left=keeper.left, keeper=keeper
    )
    again.restore(live.pins())
    assert seen(again) == after
    live.swap(snapshot(6))
    assert keeper.open == [()], "told once"


def test_a_standby_leaves_what_the_first_has_left_and_not_its_own_newest():
    live = window(1, 2, 3, 4)
    assert 4 in seen(live).values()
    live.learn([3, 4])
    assert live.now.left == (3,)
    assert 3 not in seen(live).values()
    assert 4 in seen(live).values(), "it answers until there is a newer one here"
    live.swap(snapshot(5))
    assert live.now.left == (3, 4)
    assert not {3, 4} & set(seen(live).values())


def test_what_another_service_left_that_is_not_here_yet_takes_no_place():
    live = window(1, live=1)
    live.learn([4, 5])
    for number in (2, 3, 4, 6):
        live.swap(snapshot(number))
        assert live.now.numbers == (number,)
        assert seen(live, ["alice"]) == {"alice": number}


def test_a_generation_that_was_missed_sends_nobody_to_an_older_one():
    first, standby = window(1, 2, 3), window(1, 2, 3)
    for number in (4, 5):
        first.swap(snapshot(number))
    standby.miss(4)
    standby.swap(snapshot(5))
    theirs, ours = seen(first), seen(standby)
    assert 4 in theirs.values()
    assert all(ours[client] >= theirs[client] for client in CLIENTS)


def test_a_pin_of_another_service_sends_nobody_lower_and_nor_does_its_end():
    now = [0.0]
    policy = sticky(lambda: now[0], period=1e6)
    pin = {"why": "query_attack", "seconds": 50.0}
    (own,) = policy.choose("mallory", b"", [1, 2, 3, 4])
    for number in (own - 1, own + 1):  # elsewhere its period had not passed, or had
        policy.restore([{"client": "mallory", "generation": number, **pin}])
        told = policy.choose("mallory", b"", [1, 2, 3, 4, own + 1], (own - 1,))
        assert told == (max(own, number),)
        assert policy.release("mallory")
        assert policy.choose("mallory", b"", [1, 2, 3, 4, own + 1], ()) == told
        assert policy.choose("mallory", b"", [1, 2, 3, 4, own + 1], ()) == told


@pytest.mark.parametrize("seconds", [1e9, math.nan, 30.0])
def test_a_pin_that_is_restored_lasts_no_longer_than_a_pin_may(seconds):
    now = [0.0]
    policy = sticky(lambda: now[0], hold=40.0)
    policy.pin("eve")
    policy.restore([
        {"client": "mallory", "why": "query_attack", "generation": 2, "seconds": seconds},
        {"client": "gone", "why": "query_attack", "generation": 2, "seconds": -1.0},
        {"client": "eve", "why": "other", "generation": 1, "seconds": 1.0},
    ])  # fmt: skip
    assert policy.choose("mallory", b"", [7, 8], (2,)) == (2,)
    pins = {pin["client"]: pin for pin in policy.pins()}
    assert sorted(pins) == ["eve", "mallory"]
    assert pins["mallory"]["seconds"] <= 40.0
    assert pins["eve"]["why"] == ""
    now[0] = 40.0
    assert policy.pins() == []
