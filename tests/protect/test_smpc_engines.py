"""Engines that do not start, or end before their time. No SPU is needed for it."""

from __future__ import annotations

import asyncio

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party import spare
from g2d.protect.multiparty.party.child import Child
from g2d.rotation.triggers import Backoff
from smpc_door import Door, Engine
from smpc_parties import Setup, wait_for


class Fails:
    """`Child.start` that fails so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    async def __call__(self) -> Child:
        if self.left:
            self.left -= 1
            raise MultipartyError("SPU does not start here")
        return Engine()


def test_an_engine_that_does_not_start_is_tried_again_and_status_says_so(tmp_path, monkeypatch):
    failing = Fails(10**9)
    monkeypatch.setattr(Child, "start", failing)
    monkeypatch.setattr(spare, "_AGAIN", Backoff(first=0.01, most=0.05))
    made = Door(Setup(tmp_path))
    try:
        wait_for(lambda: "(3 times)" in made.setup.status()["why"])
        told = made.setup.status()
        assert "the engine does not start" in told["why"]
        assert told["why"].endswith("SPU does not start here")
        assert not told["open"]
        failing.left = 0
        wait_for(lambda: "engine" not in made.setup.status()["why"])
        made.call(made.party.spare.there())
    finally:
        made.close()


def test_an_engine_that_ends_before_it_is_used_is_replaced(tmp_path, monkeypatch):
    started: list[Ends] = []

    class Ends(Engine):
        def __init__(self) -> None:
            super().__init__()
            self.end = asyncio.Event()
            started.append(self)

        async def ended(self) -> None:
            await self.end.wait()

    async def start() -> Child:
        return Ends()

    async def run() -> None:
        made = spare.Spare(print)
        made.begin()
        await made.there()
        started[0].end.set()
        while len(started) < 2:
            await asyncio.sleep(0)
        assert await made.take() is started[1]
        await made.close()

    monkeypatch.setattr(Child, "start", start)
    asyncio.run(run())
