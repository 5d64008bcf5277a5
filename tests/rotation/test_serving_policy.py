"""Which of the live generations answers whom: monotone, agreed upon, frozen under suspicion."""

from collections import Counter

import numpy as np
import pytest

from g2d.errors import SettingsError
from g2d.rotation.policy import Policy, Sticky, policy_of, quantised
from g2d.settings import ServeSettings, Settings

SECRET = bytes(32)


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def made(policy: str, now: Clock | None = None, secret: bytes = SECRET, **more: object) -> Policy:
    return policy_of(ServeSettings(policy=policy, **more), secret, now or Clock())  # type: ignore[arg-type]


def windows(count: int, size: int = 3) -> list[list[int]]:
    """What is live, rotation by rotation; some numbers were never live."""
    numbers = [n for n in range(5, 5 + 2 * count) if n % 4]
    return [numbers[i : i + size] for i in range(count)]


def test_global_is_the_newest_for_all_by_its_number() -> None:
    policy = made("global")
    assert policy.choose("a", b"", [4, 5, 7]) == (7,)
    assert policy.tag("a", (7,)) == "7"


def test_sticky_clients_keep_theirs_move_upwards_alone_and_are_spread() -> None:
    policy = made("sticky", clock := Clock(), period=10.0)
    clients = [f"10.0.0.{k}" for k in range(120)]
    before: dict[str, int] = {}
    for live in windows(12):
        clock.now += 10.0
        seen = {client: policy.choose(client, b"", live)[0] for client in clients}
        assert seen == {client: policy.choose(client, b"", live)[0] for client in clients}
        assert all(number in live for number in seen.values())
        assert all(number >= before.get(client, 0) for client, number in seen.items())
        assert min(Counter(seen.values()).values()) > 15, "about a third each"
        before = seen


def test_a_sticky_client_is_where_its_hash_says_after_a_restart_and_never_lower() -> None:
    clock = Clock()
    policy, replica = made("sticky", clock, period=0.0), made("sticky", clock, period=0.0)
    other = made("sticky", clock, secret=b"\1" * 32)
    clients = [f"jwt:{k}" for k in range(60)]
    differs = 0
    for live in windows(6):
        for client in clients:
            number = policy.choose(client, b"", live)
            assert replica.choose(client, b"", live) == number
            assert made("sticky", clock).choose(client, b"", live) == number, "a restart"
            differs += other.choose(client, b"", live) != number
    assert differs > 60, "another secret, other choices"


def test_a_sticky_client_moves_at_most_once_a_period_while_what_it_sees_is_live() -> None:
    clock = Clock()
    policy = made("sticky", clock, period=100.0)
    first = {f"c{k}": policy.choose(f"c{k}", b"", [1, 2, 3])[0] for k in range(60)}
    clock.now = 99.0
    after = {client: policy.choose(client, b"", [2, 3, 4])[0] for client in first}
    assert all(after[c] == first[c] for c in first if first[c] != 1), "only who had to moved"
    clock.now = 100.0
    later = {client: policy.choose(client, b"", [2, 3, 4])[0] for client in first}
    moved = [c for c in first if later[c] != after[c]]
    assert moved, "their hash prefers the newest"
    assert all(first[c] != 1 and later[c] == 4 for c in moved)


def test_a_pinned_client_stays_where_it_is_for_a_bounded_time_that_nothing_prolongs() -> None:
    clock = Clock()
    policy = made("sticky", clock, period=0.0, hold=50.0)
    assert isinstance(policy, Sticky)
    (number,) = policy.choose("mallory", b"", [1, 2, 3])
    policy.pin("mallory")
    for second in range(50):
        clock.now = float(second)
        live = [10 + second, 11 + second, 12 + second]
        assert policy.choose("mallory", b"", live) == (number,)
        assert policy.held([1, 2, 3], 3) == (number,)
        assert policy.pins()[0]["generation"] == number
        policy.pin("mallory")
    clock.now = 50.0
    assert policy.held([1, 2, 3], 3) == ()
    assert policy.pins() == []
    assert policy.choose("mallory", b"", [70, 71])[0] >= 70


def test_others_move_while_one_is_pinned_and_one_that_was_never_seen_is_pinned_to_its_first() -> (
    None
):
    clock = Clock()
    policy = made("sticky", clock, period=0.0)
    policy.pin("mallory")
    first = policy.choose("mallory", b"", [1, 2, 3])
    assert policy.choose("mallory", b"", [7, 8, 9]) == first
    assert policy.choose("alice", b"", [7, 8, 9])[0] >= 7
    assert policy.release("mallory")
    assert not policy.release("mallory")
    assert policy.choose("mallory", b"", [7, 8, 9])[0] >= 7


def test_a_suspect_whose_generation_is_gone_is_pinned_to_what_it_sees_next() -> None:
    policy = made("sticky", clock := Clock(), period=0.0, hold=50.0)
    policy.choose("mallory", b"", [1, 2, 3], ())
    clock.now = 1.0
    policy.pin("mallory", "late")  # a rotation was quicker than the alarm
    (number,) = policy.choose("mallory", b"", [7, 8, 9], ())
    assert number >= 7
    (pin,) = policy.pins()
    assert pin == {"client": "mallory", "why": "late", "generation": number, "seconds": 50.0}
    clock.now = 50.0
    assert policy.choose("mallory", b"", [17, 18, 19], (number,)) == (number,)
    clock.now = 51.0
    assert policy.pins() == [], "nothing prolongs it"


def test_a_batch_that_began_before_a_rotation_ends_no_pin() -> None:
    policy = made("sticky", Clock(), period=0.0)
    clients = [f"c{k}" for k in range(40)]
    for client in clients:
        policy.choose(client, b"", [5, 6, 7], ())
        policy.pin(client)
    pins = policy.pins()
    for client in clients:
        assert policy.choose(client, b"", [3, 4], ())[0] <= 4
    assert policy.pins() == pins


def test_of_many_pins_the_last_are_told() -> None:
    policy = made("sticky")
    for k in range(9):
        policy.pin(f"m{k}")
    assert [pin["client"] for pin in policy.pins(2)] == ["m7", "m8"]
    assert len(policy.pins()) == 9


def test_a_bound_on_what_is_held_keeps_the_newest() -> None:
    clock = Clock()
    policy = made("sticky", clock, period=0.0)
    for k, live in enumerate([[1], [2], [3], [4]]):
        policy.choose(f"m{k}", b"", live)
        policy.pin(f"m{k}")
    assert policy.held([1, 2, 3], 2) == (2, 3)
    assert policy.held([1, 2], 2) == (1, 2), "what is gone takes no place"
    assert policy.held([1, 2, 3], 0) == ()


def test_what_was_chosen_of_an_older_look_does_not_bring_a_client_back() -> None:
    clock = Clock()
    policy = made("sticky", clock, period=0.0)
    clients = [f"c{k}" for k in range(40)]
    for client in clients:
        policy.choose(client, b"", [2, 3, 4])
    top = {client: policy.choose(client, b"", [5, 6, 7])[0] for client in clients}
    for client in clients:
        assert policy.choose(client, b"", [3, 4])[0] <= 4, "a batch that began before"
        assert policy.choose(client, b"", [5, 6, 7])[0] == top[client]


def test_tags_differ_between_clients_and_change_with_what_is_seen_alone() -> None:
    sticky = made("sticky")
    tags = {sticky.tag(c, (n,)) for c in ("a", "b") for n in (1, 2)}
    assert len(tags) == 4
    assert all(len(tag) == 17 and tag.startswith("t") for tag in tags), "none is a number"
    assert sticky.tag("a", (1,)) == made("sticky").tag("a", (1,)), "the same after a restart"
    assert sticky.tag("a", (1, 2)) != sticky.tag("a", (12,))
    for name in ("vote", "random", "keyed"):
        policy = made(name)
        assert policy.tag("a", (1,)) == policy.tag("a", (2, 3)) != policy.tag("b", (1,))


def test_a_vote_is_of_all_that_are_live() -> None:
    assert made("vote").choose("a", b"", [1, 2, 3]) == (1, 2, 3)


def test_random_draws_each_and_another_process_draws_otherwise() -> None:
    policy = made("random")
    drawn = [policy.choose("a", b"", [1, 2, 3])[0] for _ in range(300)]
    assert min(Counter(drawn).values()) > 60
    fresh = policy_of(ServeSettings(policy="random"), SECRET, fresh=b"another")
    assert [fresh.choose("a", b"", [1, 2, 3])[0] for _ in range(300)] != drawn


def test_keyed_answers_the_same_input_by_the_same_one_whoever_asks() -> None:
    policy = made("keyed")
    x = np.random.default_rng(0).random((80, 1, 4), np.float32)
    near = x + np.float32(0.001)
    chosen = [policy.choose("a", quantised(one, 0.5), [1, 2, 3]) for one in x]
    assert chosen == [policy.choose("b", quantised(one, 0.5), [1, 2, 3]) for one in x]
    same = [policy.choose("a", quantised(one, 0.5), [1, 2, 3]) for one in near]
    assert sum(a == b for a, b in zip(chosen, same, strict=True)) > 75
    assert len(set(chosen)) == 3


def test_quantised_inputs_know_no_minus_zero_and_leave_whole_numbers() -> None:
    assert quantised(np.float32([[-0.01]]), 0.1) == quantised(np.float32([[0.01]]), 0.1)
    tokens = np.array([[3, 4]])
    assert quantised(tokens, 100.0) == tokens.tobytes()


def test_a_client_without_a_name_or_with_half_a_character_is_a_client() -> None:
    for name in ("", "jwt:\udc80"):
        assert made("sticky").choose(name, b"", [1, 2])[0] in (1, 2)
        assert made("sticky").tag(name, (1,))


def test_settings_say_which_policies_there_are_and_keep_old_digests() -> None:
    with pytest.raises(SettingsError, match=r"policy must be one of global, sticky.*not 'stiky'"):
        ServeSettings(policy="stiky")
    with pytest.raises(SettingsError, match=r"live must lie in \[1, 16\]"):
        ServeSettings(live=0)
    assert "[serve]" not in Settings().to_toml(former=True)
