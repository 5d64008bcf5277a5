"""The budget over bodies under way: held bytes are bounded, the oldest gives way, all come back."""

from __future__ import annotations

import asyncio
import json
import platform

import pytest

from g2d.core import platforms
from g2d.service.http.bodies import Bodies, OverBudgetError
from g2d.service.http.options import Options
from stand_ins import INFER, Harness, body, run, wait_for

MB = 1 << 20
PART = 100_000  # bytes


def test_the_oldest_body_gives_way_and_every_byte_comes_back():
    async def work():
        bodies, ended = Bodies(10 * MB, 4 * MB), []

        async def hold(name: str, client: str, size: int) -> None:
            try:
                async with asyncio.timeout(60) as limit:
                    with bodies.open(client, limit) as body:
                        for _ in range(size):
                            body.add(MB)
                        await asyncio.sleep(60)
            except TimeoutError:
                ended.append((name, body.over.own))
            except OverBudgetError as error:
                ended.append((name, error.own))

        tasks = []
        for name, client, size in (("a", "x", 3), ("b", "x", 2), ("c", "y", 4), ("d", "y", 2),
                                   ("e", "z", 5), ("f", "127.0.0.1", 9)):  # fmt: skip
            tasks.append(asyncio.ensure_future(hold(name, client, size)))
            await asyncio.sleep(0.01)
            assert bodies.held <= 10 * MB
        # c with d is more than half, which is y's share; e is in the way of nobody but of all.
        assert ended == [("c", True), ("a", False), ("b", False), ("d", False), ("e", False)]
        assert bodies.held == 9 * MB
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (bodies.held, bodies.under_way, bodies._clients) == (0, {}, {})

    asyncio.run(work())


def test_a_body_that_is_parsed_does_not_give_way():
    async def work():
        bodies = Bodies(4 * MB, 2 * MB)
        async with asyncio.timeout(60) as limit:
            with bodies.open("127.0.0.1", limit) as first, bodies.open("127.0.0.1", limit) as other:
                first.add(2 * MB)
                first.arrived()
                other.add(2 * MB)
                with pytest.raises(OverBudgetError):
                    other.add(1)
                assert bodies.held == 2 * MB
        assert bodies.held == 0

    asyncio.run(work())


def test_a_crowd_of_bodies_short_of_a_byte_is_bounded_and_others_are_answered(monkeypatch):
    trimmed = []
    monkeypatch.setattr(platforms, "trim_memory", lambda: trimmed.append(True))
    monkeypatch.setattr("g2d.service.http.bodies._NOTABLE", MB)
    monkeypatch.setattr("g2d.service.http.app._SETTLE", 0.01)
    harness = Harness(Options(max_body=PART + 1, max_bodies=20 * PART, timeout=60))
    bodies, large = harness.service._bodies, json.dumps(body()).encode().ljust(PART)

    async def work(client):
        ends = asyncio.Event()

        async def short():
            yield b"{" + bytes(PART // 2)
            yield bytes(PART // 2)
            await ends.wait()  # the last byte

        crowd = [asyncio.ensure_future(client.post(INFER, content=short())) for _ in range(60)]
        peak = 0
        while sum(each.done() for each in crowd) < 60 - 20 or bodies.held < 19 * PART:
            await asyncio.sleep(0.01)
            peak = max(peak, bodies.held)
        assert peak <= 20 * PART
        answered = await asyncio.gather(
            client.post(INFER, json=body()), client.post(INFER, content=large)
        )
        assert [each.status_code for each in answered] == [200, 200]
        ends.set()
        for refused in await asyncio.gather(*crowd):
            assert refused.status_code in (400, 503)
            if refused.status_code == 503:
                assert refused.headers["retry-after"] == "1"
                assert refused.headers["connection"] == "close"
        assert (bodies.held, bodies.under_way, bodies._clients) == (0, {}, {})
        await asyncio.to_thread(wait_for, lambda: trimmed)
        assert trimmed == [True]

    run(harness, work)


def test_memory_can_be_trimmed_here():
    assert platforms.trim_memory() or platform.libc_ver()[0] != "glibc"
