"""A crowd of connections that say nothing, or whose bodies lack a byte; `silence` starts it.

    python -m benchmarks.hostile.crowd KIND COUNT PORT SECONDS SIZE

KIND: plain, tls or bodies; SIZE: bytes of a body. Imports little: it has to be there at once.
Prints as JSON how many connections were opened, closed by the other side, or could not be opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import time
from collections import Counter
from typing import Any

HOST = "127.0.0.1"
_PIECES = {"plain": b"GET /v2 HTTP/1.1\r\nhost: ", "tls": b"\x16\x03\x01\x02\x00\x01"}
_POST = "POST /v2/models/g2d/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n"


def pieces(kind: str, count: int, size: int) -> list[bytes]:
    """What each connection sends: nothing, every third a piece of a head; or a body."""
    if kind == "bodies":
        return [_POST.format(size).encode() + b"{" + b" " * (size - 2)] * count
    return [_PIECES[kind] if place % 3 == 0 else b"" for place in range(count)]


class Silent(asyncio.Protocol):
    """Sends its piece and waits to be closed."""

    def __init__(self, piece: bytes) -> None:
        self.piece, self.lost = piece, asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        if self.piece:
            transport.write(self.piece)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():  # the storm is not over
            self.lost.set_result(None)


async def crowd(port: int, given: list[bytes], seconds: float) -> Counter[str]:
    """Hold one connection open for each piece, and open it again when it is closed."""
    counts, until = Counter[str](), time.monotonic() + seconds
    loop = asyncio.get_running_loop()

    async def one(piece: bytes) -> None:
        while time.monotonic() < until:
            try:
                _, silent = await loop.create_connection(lambda: Silent(piece), HOST, port)
                counts["opened"] += 1
                await silent.lost
                counts["closed"] += 1
            except OSError:
                counts["refused"] += 1
                await asyncio.sleep(0.05)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*map(one, given))
    return counts


def main() -> None:
    kind, count, port, seconds, size = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    given = pieces(kind, int(count), int(size))
    print(json.dumps(asyncio.run(crowd(int(port), given, float(seconds)))))


if __name__ == "__main__":
    main()
