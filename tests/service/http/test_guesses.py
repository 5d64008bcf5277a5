"""Guessing the admin's token: waits that double, a budget for all strangers, bounded memory."""

from __future__ import annotations

import pytest

from g2d.service.http.guesses import Guesses
from stand_ins import ADMIN, TOKEN, Harness, run


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def guesses(clock):
    return Guesses(now=lambda: clock[0])


def test_waits_double_to_a_minute_and_end(guesses, clock):
    waits = []
    for _ in range(20):
        waits.append(guesses.wrong("192.0.2.1"))
        clock[0] += guesses.wait("192.0.2.1")
        assert guesses.wait("192.0.2.1") == 0
    assert waits == [0] * 9 + [1, 2, 4, 8, 16, 32] + [60] * 5
    assert guesses.wait("192.0.2.2") == 0
    clock[0] += 601
    assert guesses.wrong("192.0.2.1") == 0


def test_an_address_that_gave_the_right_token_is_not_held_off_by_a_few_wrong_ones(guesses, clock):
    guesses.right("192.0.2.1")
    for _ in range(100):
        assert guesses.wait("192.0.2.1") == 0
        guesses.wrong("192.0.2.1")
    assert 0 < guesses.wait("192.0.2.1") <= 0.1  # ten a second
    clock[0] += 0.1
    assert guesses.wait("192.0.2.1") == 0


def test_strangers_have_a_budget_together_and_memory_is_bounded(guesses, clock):
    guesses.right("198.51.100.1")
    for number in range(12_000):
        guesses.wrong(f"2001:db8:{number // 9999:x}:{number % 9999:x}::1")
    assert len(guesses._strangers) == 10_000
    assert guesses.wait("192.0.2.1") > 0
    assert guesses.wait("198.51.100.1") == 0
    clock[0] += 60
    assert guesses.wait("192.0.2.1") == 0
    for number in range(2000):
        guesses.right(str(number))
    assert len(guesses._friends) == 1000


def test_a_guesser_is_told_to_wait_and_the_right_token_from_elsewhere_works():
    harness = Harness()

    async def work(client):
        def ask(address: str, headers: dict):
            client._transport.client = (address, 1)
            return client.post("/admin/pause", headers=headers)

        wrong = {"authorization": f"Bearer {TOKEN}x"}
        for _ in range(10):
            assert (await ask("192.0.2.1", wrong)).status_code == 401
        for headers in (wrong, ADMIN):  # neither is looked at
            held = await ask("192.0.2.1", headers)
            assert (held.status_code, held.headers["retry-after"]) == (429, "1")
        assert (await ask("192.0.2.1", {})).status_code == 401  # no guess
        assert (await ask("192.0.2.2", ADMIN)).status_code == 200
        for _ in range(30):
            assert (await ask("192.0.2.2", wrong)).status_code == 401
        assert (await ask("192.0.2.2", ADMIN)).status_code == 200

    run(harness, work)
    (held,) = [line for line in harness.lines() if line["event"] == "held_off"]
    assert (held["client"], held["seconds"]) == ("192.0.2.1", 1.0)
