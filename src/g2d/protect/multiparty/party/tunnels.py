"""SPU's links between parties, within connections whose certificates are pinned to ranks.

SPU's own TLS trusts whatever an authority has signed, for any rank. So SPU speaks through Unix
sockets in a folder of this user's alone, and each of its connections is carried by one of ours: the
side that dials names session and rank, the side that is dialled knows the rank by the certificate.
SPU's frames inside name their sender once more, which is not compared: parties are semi-honest.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.wire import Channel, quiet

_PART = 1 << 18
Dial = Callable[[int], Awaitable[Channel]]


class Tunnels:
    """Sockets of one session, and what runs through them.

    Args:
        folder: for the sockets, of this user alone; it goes with the session.

    Attributes:
        endpoints: what SPU is told, by rank. sent: bytes that this party has sent to others.
    """

    def __init__(self, rank: int, ranks: range, dial: Dial, folder: Path) -> None:
        self._rank, self._dial, self._folder = rank, dial, folder
        self._others = [other for other in ranks if other != rank]
        self._sockets = {other: str(folder / str(other)) for other in ranks}
        self.endpoints = [f"unix:{self._sockets[other]}" for other in ranks]
        self._servers: list[asyncio.Server] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._over = False
        self.sent = 0

    async def open(self) -> None:
        """Listen for this party's own SPU."""
        for other in self._others:

            async def connected(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, other: int = other
            ) -> None:
                await self._out(other, reader, writer)

            server = await asyncio.start_unix_server(
                quiet(connected), self._sockets[other], limit=_PART
            )
            self._servers.append(server)

    async def _out(
        self, other: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            channel = await self._dial(other)
        except (OSError, EOFError, MultipartyError):
            writer.close()  # SPU tries again
            return
        await self._carry(reader, writer, channel.reader, channel.writer)

    async def into(self, channel: Channel) -> None:
        """Carry a connection of another party to this party's SPU, until it ends."""
        try:
            reader, writer = await asyncio.open_unix_connection(
                self._sockets[self._rank], limit=_PART
            )
        except OSError:
            await channel.close()  # SPU does not listen yet
            return
        await self._carry(reader, writer, channel.reader, channel.writer)

    async def _carry(
        self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter,
        far: asyncio.StreamReader, far_out: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        ends = {near_out, far_out}
        self._open |= ends
        if self._over:
            _close(ends)
        try:
            await asyncio.gather(self._pass(near, far_out, True), self._pass(far, near_out, False))
        finally:
            self._open -= ends
            _close(ends)

    async def _pass(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, count: bool
    ) -> None:
        with contextlib.suppress(OSError, EOFError):
            while part := await source.read(_PART):
                to.write(part)
                if count:
                    self.sent += len(part)
                await to.drain()
        to.close()

    def close(self) -> None:
        """End all that runs through them."""
        self._over = True
        for server in self._servers:
            server.close()
        _close(self._open)
        shutil.rmtree(self._folder, ignore_errors=True)


def _close(writers: set[asyncio.StreamWriter]) -> None:
    for writer in list(writers):
        writer.close()
