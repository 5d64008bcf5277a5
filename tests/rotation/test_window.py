"""Several generations live at once: what a swap retires, what is held, nobody goes back."""

import math

import pytest

from g2d.rotation.policy import policy_of
from g2d.rotation.snapshot import Snapshot
from g2d.rotation.window import Window
from g2d.settings import ServeSettings


def snapshot(number: int, expires: float = math.inf) -> Snapshot:
    return Snapshot(number, lambda x: (number, x), expires=expires)


def window(*numbers: int, policy: str = "sticky", live: int = 3, clock=lambda: 0.0) -> Window:
    settings = ServeSettings(policy=policy, live=live, period=0.0, hold=10.0)
    made = policy_of(settings, bytes(32), clock)
    return Window([snapshot(number) for number in numbers], made, live)


def numbers(window: Window) -> list[int]:
    return [each.number for each in window.snapshots]


def test_a_swap_retires_the_oldest_and_numbers_only_rise():
    live = window(1, 2)
    assert live.swap(snapshot(4)) == 4
    assert numbers(live) == [1, 2, 4]
    live.swap(snapshot(5))
    assert numbers(live) == [2, 4, 5]
    assert (live.number, live.snapshot.number) == (5, 5)
    with pytest.raises(AssertionError, match="only rise"):
        live.swap(snapshot(5))


def test_more_than_may_be_live_are_never_and_one_is_enough():
    assert numbers(window(1, 2, 3, 4, live=2)) == [3, 4]
    assert numbers(window(7, live=16)) == [7]


def test_what_answers_is_healed_wherever_it_is_and_nothing_else():
    live = window(1, 2, 3)
    for number in (1, 3):
        fresh = snapshot(number)
        assert live.heal(fresh)
        assert fresh in live.snapshots
    assert live.snapshot is live.snapshots[-1]
    assert not live.heal(snapshot(9))
    assert numbers(live) == [1, 2, 3]


def test_a_suspects_generation_is_held_and_let_go_when_its_pin_ends():
    now = [0.0]
    live = window(1, clock=lambda: now[0])
    assert live.choose("mallory", b"")[0].number == 1
    live.pin("mallory")
    for number in (2, 3, 4, 5):
        live.swap(snapshot(number))
    assert numbers(live) == [1, 3, 4, 5]
    assert live.choose("mallory", b"")[0].number == 1
    assert live.heal(snapshot(1)), "what is held is watched like what is live"
    live.tend(0.0)
    assert numbers(live) == [1, 3, 4, 5]
    now[0] = 10.0
    live.tend(0.0)
    assert numbers(live) == [3, 4, 5]
    assert live.choose("mallory", b"")[0].number >= 3


def test_no_more_are_held_than_are_live_and_whose_was_let_go_moves_upwards():
    live = window(1, live=2)
    for number in range(2, 9):
        client = f"m{number}"
        first = live.choose(client, b"")[0].number
        live.pin(client)
        assert live.choose(client, b"")[0].number == first
        live.swap(snapshot(number))
    assert len(numbers(live)) <= 4
    for k in range(2, 9):
        assert live.choose(f"m{k}", b"")[0].number in numbers(live)


def test_many_suspects_do_not_free_the_first_of_them():
    live = window(1, live=1)
    live.choose("mallory", b"")
    live.pin("mallory")
    for number in range(2, 9):  # an account for each rotation, so that hers is let go
        live.choose(f"m{number}", b"")
        live.pin(f"m{number}")
        live.swap(snapshot(number))
    moved = live.choose("mallory", b"")[0].number
    assert moved > 1
    assert "mallory" in {pin["client"] for pin in live.pins()}
    live.swap(snapshot(9))
    assert live.choose("mallory", b"")[0].number == moved


def test_pins_to_what_is_gone_take_no_place_of_what_is_held():
    live = window(1, live=1)
    live.choose("mallory", b"")
    live.pin("mallory")
    for number in (2, 3):
        live.swap(snapshot(number))
        live.choose(f"m{number}", b"")
    live.swap(snapshot(4))
    live.pin("m3")  # when 3 was retired already
    live.swap(snapshot(5))
    assert live.choose("mallory", b"")[0].number == 1


def test_the_oldest_that_is_live_is_noted_when_it_has_changed_and_once():
    noted, failing = [], []

    def note(first: int) -> None:
        noted.append(first)
        if failing:
            raise OSError(failing.pop())

    settings = ServeSettings(policy="vote", live=3)
    made = policy_of(settings, bytes(32))
    live = Window([snapshot(1), snapshot(2), snapshot(3)], made, 3, note)
    live.remember()
    assert noted == []
    assert live.leave(1)
    live.remember()
    live.remember()
    live.swap(snapshot(4))
    live.swap(snapshot(5))
    failing.append("full")
    with pytest.raises(OSError, match="full"):
        live.remember()
    live.remember()
    assert noted == [2, 3]


def test_what_has_expired_takes_along_what_is_older_but_the_newest_stays():
    settings = ServeSettings(policy="sticky", live=4)
    made = policy_of(settings, bytes(32), lambda: 0.0)
    live = Window([snapshot(1), snapshot(2, 5.0), snapshot(3), snapshot(4, 5.0)], made, 4)
    assert live.tend(4.9) == ()
    assert numbers(live) == [1, 2, 3, 4]
    assert live.tend(5.0) == (2,)
    assert numbers(live) == [3, 4]
    assert live.tend(6.0) == ()


def test_what_nothing_can_heal_leaves_with_what_is_older_but_never_the_newest():
    live = window(1, 2, 3, 4, live=4)
    assert live.leave(2)
    assert numbers(live) == [3, 4]
    assert not live.leave(4)
    live.choose("mallory", b"")
    live.pin("mallory")
    held = live.choose("mallory", b"")[0].number
    for number in range(5, 9):
        live.swap(snapshot(number))
    assert numbers(live) == [held, 5, 6, 7, 8]
    assert live.leave(held)
    assert numbers(live) == [5, 6, 7, 8]
    assert live.choose("mallory", b"")[0].number >= 5


def test_a_request_keeps_what_it_was_chosen_from_whatever_rotates():
    live = window(1, 2, 3, policy="vote")
    now = live.now
    live.swap(snapshot(4))
    assert [each.number for each in live.choose("a", b"", now)] == [1, 2, 3]
    assert [each.number for each in live.choose("a", b"")] == [2, 3, 4]
