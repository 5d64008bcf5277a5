"""SPU's links between parties, within connections whose certificates are pinned to ranks.

SPU's own TLS trusts whatever an authority has signed, for any rank. So SPU speaks through Unix
sockets in a folder of this user's alone, and each of its connections is carried by one of ours: the
side that dials names session and rank, the side that is dialled knows the rank by the certificate.
What travels is the messages inside SPU's frames, in nobody else's name (`frames`).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party.frames import Coming, Leaving
from g2d.protect.multiparty.wire import Channel, WireError, quiet

_PART = 1 << 18
Dial = Callable[[int], Awaitable[Channel]]
Heard = Callable[[str], None]


class Tunnels:
    """Sockets of one session, and what runs through them.

    Args:
        folder: for the sockets, of this user alone; it goes with the session. refused: told why,
            where another party has sent what it may not.

    Attributes:
        endpoints: what SPU is told, by rank. sent: bytes that this party has sent to others.
    """

    def __init__(self, rank: int, ranks: range, dial: Dial, folder: Path, refused: Heard) -> None:
        self._rank, self._dial, self._folder, self._refused = rank, dial, folder, refused
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
        await self._carry(reader, writer, channel, Coming(other, asks=False))

    async def into(self, channel: Channel, rank: int) -> None:
        """Carry a connection of another party to this party's SPU, until it ends.

        Args:
            rank: the other party's, by its certificate.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(
                self._sockets[self._rank], limit=_PART
            )
        except OSError:
            await channel.close()  # SPU does not listen yet
            return
        await self._carry(reader, writer, channel, Coming(rank, asks=True))

    async def _carry(
        self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter, far: Channel,
        coming: Coming,
    ) -> None:  # fmt: skip
        ends = {near_out, far.writer}
        self._open |= ends
        if self._over:
            _close(ends)
        try:
            await asyncio.gather(
                self._out_of(near, far.writer), self._in_to(near_out, far.reader, coming)
            )
        except WireError as error:
            self._refused(str(error))
        finally:
            self._open -= ends
            _close(ends)

    async def _out_of(self, near: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        leaving = Leaving()
        with contextlib.suppress(OSError, EOFError):
            while part := await near.read(_PART):
                short = leaving.passed(part)
                self.sent += len(short)
                to.write(short)
                await to.drain()
        to.close()

    async def _in_to(
        self, to: asyncio.StreamWriter, far: asyncio.StreamReader, coming: Coming
    ) -> None:
        with contextlib.suppress(OSError, EOFError):
            while part := await far.read(_PART):
                if whole := coming.passed(part):
                    to.write(whole)
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
