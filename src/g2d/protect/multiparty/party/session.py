"""One session: the parties' engines, linked; what each has loaded. Over when any party is gone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from g2d.protect.multiparty.config import Config
from g2d.protect.multiparty.errors import InconsistentError, MultipartyError
from g2d.protect.multiparty.party.child import Child
from g2d.protect.multiparty.party.requests import Answer, Pending
from g2d.protect.multiparty.party.store import Held, Store
from g2d.protect.multiparty.party.tunnels import Dial, Heard, Tunnels
from g2d.protect.multiparty.program import Program

LINK = 60.0
"""Seconds within which all engines of a session have to find each other."""


def session_id(nonces: Sequence[str]) -> str:
    """The name of the session that all parties have brought a fresh number to."""
    return hashlib.sha256("\n".join(nonces).encode()).hexdigest()


class Session:
    """A session as one party has it.

    Attributes:
        id: its name. loaded: generations that its engine holds, with their programs. linked:
            whether the engines have found each other.
    """

    def __init__(
        self, name: str, config: Config, rank: int, child: Child, dial: Dial, sockets: Path,
        refused: Heard,
    ) -> None:  # fmt: skip
        self.id, self.loaded = name, dict[Held, Program]()
        self.linked = False
        self._config, self._rank, self._child = config, rank, child
        self.tunnels = Tunnels(rank, config.ranks, dial, sockets, refused)

    async def link(self) -> None:
        """Join the others' engines; raises `MultipartyError` where they do not come."""
        await self.tunnels.open()
        async with asyncio.timeout(2 * LINK):
            await self._child.ask(
                "link", session=self.id, endpoints=self.tunnels.endpoints, rank=self._rank,
                protocol=self._config.protocol, seconds=LINK, run=self._config.limits.run,
                bounds=self._config.limits.bounds,
            )  # fmt: skip
        self.linked = True

    async def load(self, store: Store, held: Held) -> None:
        """Bring a generation's shares into the engine."""
        if held not in self.loaded:
            program, body = store.load(held)
            text = program.to_json()
            await self._child.ask("load", body, slot=held.slot, program=text)
            self.loaded[held] = program

    async def drop(self, held: Held) -> None:
        """Take a generation out of the engine."""
        if self.loaded.pop(held, None) is not None:
            await self._child.ask("drop", slot=held.slot)

    async def prepare(self, pending: Pending, held: Held) -> None:
        """Check that a request can be computed with a generation, and compile for it.

        Raises:
            MultipartyError: it cannot.
        """
        program = self.loaded.get(held)
        if program is None:
            raise MultipartyError(
                f"generation {held.number} of sharing {held.sharing[:8]} is not what party"
                f" {self._rank} holds"
            )
        if pending.digest != program.digest:
            raise MultipartyError(f"party {self._rank} has the request for another program")
        await self._child.ask("prepare", slot=held.slot, n=pending.n)

    async def run(self, pending: Pending, held: Held) -> Answer:
        """Compute; the share of the answer, and of which generation it is.

        Raises:
            InconsistentError: all engines have found the request's shares to be inconsistent.
            MultipartyError: the engine failed, and others may wait for it.
        """
        before = self.tunnels.sent
        told, body = await self._child.ask(
            "run", pending.body, slot=held.slot, n=pending.n,
            agree=f"{self.id} {pending.client} {pending.id}",
        )  # fmt: skip
        if "apart" in told:
            raise InconsistentError(str(told["apart"]))
        about: Mapping[str, object] = {
            "number": held.number, "sharing": held.sharing, "digest": held.digest,
            "seconds": told["seconds"], "cpu": told["cpu"], "sent": self.tunnels.sent - before,
        }  # fmt: skip
        return about, body

    async def ended(self) -> None:
        """Wait until the engine is gone."""
        await self._child.ended()

    def end(self) -> None:
        """Kill the engine, whatever it does, and close its links."""
        self._child.kill()
        self.tunnels.close()
