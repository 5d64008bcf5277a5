"""Party 0 in this process, in front of whatever a test says. No SPU is needed for it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from g2d.protect.multiparty import wire
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party.child import Child
from g2d.protect.multiparty.party.coordinator import Coordinator
from g2d.protect.multiparty.party.store import Store
from g2d.protect.multiparty.program import Program
from g2d.protect.multiparty.wire import Line
from smpc_parties import Setup, wait_for

VERSIONS = {"spu": "1"}
DENSE = Program((2,), 2, ({"kind": "linear", "weight": [2, 2], "bias": False},), (0.0,), (1.0,))
NAME = "0" * 32
SHARE = bytes(16 * DENSE.size)


class Engine(Child):
    """No engine: what asks it waits for ever."""

    def __init__(self) -> None:
        self.killed = False

    async def ended(self) -> None:
        await asyncio.sleep(3600)

    async def ask(self, kind: str, body: bytes = b"", **asked: Any) -> Any:
        await asyncio.sleep(3600)

    def kill(self) -> None:
        self.killed = True


class Door:
    """Party 0 in a thread, in front of whatever a test says."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.said = setup, list[str]()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        store = Store(setup.folder / "state0")
        self.party = self.call(self._made(store))
        self._running = asyncio.run_coroutine_threadsafe(self.party.run(), self.loop)
        wait_for(lambda: any("listens" in line for line in self.said))

    async def _made(self, store: Store) -> Coordinator:
        own = self.setup.own("party0")
        return Coordinator(self.setup.config, 0, own, store, VERSIONS, self.said.append)

    def call(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(60)

    def close(self) -> None:
        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.call(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self.party.store.close()

    def line(self, name: str) -> Line:
        return Line(self.setup.config, 0, self.setup.own(name), 30.0)

    def hello(self, rank: int, **changes: Any) -> dict[str, Any]:
        return {
            "kind": "peer", "rank": rank, "version": wire.VERSION, "versions": VERSIONS,
            "config": self.setup.config.digest, "nonce": NAME,
        } | changes  # fmt: skip


def refused(line: Line, header: dict[str, Any], expected: str, body: bytes = b"") -> None:
    with line, pytest.raises(MultipartyError, match=expected):
        line.ask(header, body)
