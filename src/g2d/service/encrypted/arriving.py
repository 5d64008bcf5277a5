"""A client's keys on their way onto the disk: not too large, in time, and never at a trickle."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import IO

from g2d.service.access.quotas import retry_after
from g2d.service.encrypted.uploads import AGAIN, Upload
from g2d.service.http.protocol import RequestError
from g2d.service.http.reading import next_part, too_large
from g2d.service.http.types import Receive

_GRACE = 10.0
"""Seconds that an upload may be behind: few uploads are taken at a time, so that one which trickles
holds a place of others."""
_WRITTEN = 1 << 20  # bytes of keys that are written at once, beside the loop


async def save(receive: Receive, upload: Upload, size: int, seconds: float) -> None:
    """Write a body to an upload's file, which is new; afterwards the upload is whole.

    Whoever sends is held to the pace that makes `size` bytes whole in time, ten seconds behind it
    at most (a quarter of all, where that is less). Only the time counts that he lets us wait.

    Args:
        size: bytes that keys have, and the most that are read. seconds: until all must be there.

    Raises:
        RequestError: 408, it is late, or too slow; 413, larger; 503, it gave way to another, or the
            disk takes no more.
    """
    coming = _Coming(receive, upload, size, seconds)
    target: IO[bytes] | None = None
    try:
        async with asyncio.timeout(seconds) as upload.limit:
            target = await asyncio.to_thread(upload.file.open, "xb")
            while not upload.whole:
                waiting = bytearray()
                while len(waiting) < _WRITTEN and not upload.whole:
                    waiting += await coming.part()
                await asyncio.to_thread(target.write, bytes(waiting))
    except TimeoutError:
        if upload.over:
            when = retry_after(AGAIN)
            text = f"others wait, and these keys come slowly; send again in {when[1].decode()} s"
            raise RequestError(503, text, when) from None
        raise RequestError(408, f"the keys did not arrive within {seconds:g} s") from None
    except OSError as error:
        text = f"the keys cannot be kept here ({error.strerror}); try again later"
        raise RequestError(503, text) from None
    finally:
        upload.limit = None
        if target is not None:
            await asyncio.to_thread(_close, target)


class _Coming:
    """A body that comes; see `save`. What has come is noted in its upload."""

    def __init__(self, receive: Receive, upload: Upload, most: int, seconds: float) -> None:
        self._receive, self._upload, self._most, self._seconds = receive, upload, most, seconds
        self._grace, self._waited = min(_GRACE, seconds / 4), 0.0

    async def part(self) -> bytes:
        """What comes next."""
        pace = (self._seconds - self._grace) / self._most  # seconds a byte
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._grace + pace * self._upload.size - self._waited):
                part, whole = await next_part(self._receive)
        except TimeoutError:
            least = self._most / 1e6 / self._seconds
            raise RequestError(
                408,
                f"the keys come too slowly: {least:.2g} MB/s are the least that is whole within"
                f" {self._seconds:g} s",
            ) from None
        self._waited += loop.time() - began
        self._upload.size += len(part)
        if self._upload.size > self._most:
            raise too_large(self._most)
        self._upload.whole = whole
        return part


def _close(target: IO[bytes]) -> None:
    with suppress(OSError):  # a full disk fails again; it was said
        target.close()
