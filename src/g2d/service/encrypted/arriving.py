"""A client's keys on their way onto the disk: not too large, in time, and never at a trickle."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import IO

from g2d.service.http.protocol import RequestError
from g2d.service.http.reading import next_part, too_large
from g2d.service.http.types import Receive

_GRACE = 10.0
"""Seconds that an upload may be behind: few uploads are taken at a time, so that one which trickles
holds a place of others."""
_WRITTEN = 1 << 20  # bytes of keys that are written at once, beside the loop


async def save(receive: Receive, file: Path, size: int, seconds: float) -> int:
    """Write a body to a new file; return how many bytes there were.

    Whoever sends is held to the pace that makes `size` bytes whole in time, ten seconds behind it
    at most (a quarter of all, where that is less). Only the time counts that he lets us wait.

    Args:
        size: bytes that keys have, and the most that are read. seconds: until all must be there.

    Raises:
        RequestError: 408, it is late, or too slow; 413, larger; 503, the disk takes no more.
    """
    coming = _Coming(receive, size, seconds)
    target: IO[bytes] | None = None
    try:
        async with asyncio.timeout(seconds):
            target = await asyncio.to_thread(file.open, "xb")
            while not coming.whole:
                waiting = bytearray()
                while len(waiting) < _WRITTEN and not coming.whole:
                    waiting += await coming.part()
                await asyncio.to_thread(target.write, bytes(waiting))
    except TimeoutError:
        raise RequestError(408, f"the keys did not arrive within {seconds:g} s") from None
    except OSError as error:
        text = f"the keys cannot be kept here ({error.strerror}); try again later"
        raise RequestError(503, text) from None
    finally:
        if target is not None:
            await asyncio.to_thread(_close, target)
    return coming.size


class _Coming:
    """A body that comes; see `save`.

    Attributes:
        size: bytes that have come. whole: they are all.
    """

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most, self._seconds = receive, most, seconds
        self._grace, self._waited = min(_GRACE, seconds / 4), 0.0
        self.size, self.whole = 0, False

    async def part(self) -> bytes:
        """What comes next."""
        pace = (self._seconds - self._grace) / self._most  # seconds a byte
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._grace + pace * self.size - self._waited):
                part, self.whole = await next_part(self._receive)
        except TimeoutError:
            least = self._most / 1e6 / self._seconds
            raise RequestError(
                408,
                f"the keys come too slowly: {least:.2g} MB/s are the least that is whole within"
                f" {self._seconds:g} s",
            ) from None
        self._waited += loop.time() - began
        self.size += len(part)
        if self.size > self._most:
            raise too_large(self._most)
        return part


def _close(target: IO[bytes]) -> None:
    with suppress(OSError):  # a full disk fails again; it was said
        target.close()
