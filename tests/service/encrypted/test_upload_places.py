"""Who holds all places of uploads does not keep the others out: somebody gives way."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import httpx
import pytest

from echoing import GOOD, OPTIONS, echoing
from g2d.service.encrypted.evaluators import BusyError
from g2d.service.encrypted.uploads import PLACES, Uploads, network_of
from g2d.service.http.limits import client_of

KEYS = "/encrypted/keys"
NEAR = [f"10.0.0.{i}" for i in range(PLACES)]
FAR = [f"10.{i}.0.1" for i in range(1, PLACES + 1)]
NEAR_6 = [f"2001:db8:1:{i}::7" for i in range(PLACES)]


class Ring:
    """Places, by a clock of the test's own."""

    def __init__(self, folder) -> None:
        self.now = 0.0
        self.places = Uploads(folder, 30.0, lambda: self.now)

    def open(self, address: str, size: int = 0):
        made = self.places.open(client_of(address))
        made.size = size
        return made


@pytest.fixture
def ring(tmp_path):
    return Ring(tmp_path)


@pytest.mark.parametrize(
    ("addresses", "another"), [(NEAR, "10.0.0.9"), (NEAR_6, "2001:db8:1:9::7")]
)
def test_four_addresses_of_one_network_do_not_hold_all_places(ring, addresses, another):
    held = [ring.open(one, 100 - place) for place, one in enumerate(addresses)]
    ring.now = 1.0
    ring.open("10.9.0.1")
    assert [one.over for one in held] == [False] * (PLACES - 1) + [True]  # the slowest
    ring.open("10.8.0.1")
    assert sum(one.over for one in held) == 2
    with pytest.raises(BusyError) as refused:  # he would have as many as they, or more
        ring.open(another)
    assert not refused.value.own


def test_of_four_networks_the_slowest_gives_way_once_he_has_had_his_time(ring):
    held = [ring.open(one, 10 + (place - 2) ** 2) for place, one in enumerate(FAR)]
    ring.now = 29.0
    with pytest.raises(BusyError):
        ring.open("10.9.0.1")
    ring.now = 30.0
    ring.open("10.9.0.1")
    assert [one.over for one in held] == [False, False, True, False]
    held[0].whole = held[1].whole = held[3].whole = True  # an evaluator reads them
    with pytest.raises(BusyError):
        ring.open("10.8.0.1")
    ring.now = 60.0
    ring.open("10.8.0.1")  # of him who came at 30


def test_a_name_is_a_network_of_its_own_and_loopback_is_nobodys(ring):
    local = [ring.open("127.0.0.1"), ring.open("::1"), ring.open("127.0.0.1")]
    ring.open("10.0.0.1")
    with pytest.raises(BusyError):
        ring.open("10.9.0.1")
    ring.now = 31.0
    ring.open("127.0.0.1")  # loopback's own are late
    assert [one.over for one in local] == [True, False, False]
    assert network_of("jwt:10.0.0.1") == "jwt:10.0.0.1"
    assert network_of(client_of("2001:db8:1:2::3")) == "2001:db8:1::/48"


def test_who_gives_way_is_told_and_leaves_nothing_and_the_newcomer_is_served(monkeypatch):
    harness, evaluators = echoing(monkeypatch, replace(OPTIONS, encrypted_timeout=3600.0))
    never = asyncio.Event()

    def at(address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(harness.service, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://g2d")

    async def work() -> None:
        async with harness.client(), contextlib.AsyncExitStack() as stack:
            started = [asyncio.Event() for _ in NEAR]

            async def slow(place: int):
                yield GOOD[: len(GOOD) - place]
                started[place].set()
                await never.wait()

            slows = []
            for place, address in enumerate(NEAR):
                client = await stack.enter_async_context(at(address))
                slows.append(asyncio.create_task(client.post(KEYS, content=slow(place))))
                await started[place].wait()
            other = await stack.enter_async_context(at("10.9.0.1"))
            told = await asyncio.wait_for(other.post(KEYS, content=GOOD), 60)
            assert told.status_code == 201, told.text
            done, _ = await asyncio.wait(slows, return_when=asyncio.FIRST_COMPLETED)
            (ended,) = (one.result() for one in done)
            assert ended.status_code == 503
            assert "others wait" in ended.json()["error"]
            assert ended.headers["retry-after"]
            assert len(list(evaluators.spool.iterdir())) == len(NEAR)  # three, and the newcomer's
            for one in slows:
                one.cancel()

    asyncio.run(work())
