"""A party that means harm: ours, but for what it puts into its messages to the others.

    python -m benchmarks.confidential.malicious FILE --rank 1 --config parties.toml

Runs in the parties' environment. Where FILE is there, what stands in it happens to one message of
numbers that this party's SPU sends: `flip 3` changes a byte of the third one after that, `name 3`
puts another party's name on it. FILE goes when it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
from pathlib import Path

from g2d.protect.multiparty.party import __main__ as party
from g2d.protect.multiparty.party.frames import Leaving
from g2d.protect.multiparty.party.tunnels import Tunnels

FLIP, NAME = "flip", "name"
_LEAST = 256  # bytes: shorter messages are words of the protocol's, not numbers
_PART = 1 << 18


class Harm:
    """What is done, and when."""

    def __init__(self, order: Path) -> None:
        self._order, self._seen = order, 0

    def done_to(self, frame: bytearray) -> None:
        """Change a frame, if its turn has come."""
        if len(frame) < _LEAST or not self._order.exists():
            return
        what, after = self._order.read_text().split()
        self._seen += 1
        if self._seen < int(after):
            return
        self._seen = 0
        if what == FLIP:
            frame[-4] ^= 0x40
        else:
            (meta,) = struct.unpack_from(">I", frame, 8)
            assert frame[12 + meta] == 8, "the sender's rank comes first in a message of party 1's"
            frame[13 + meta] = 3 - frame[13 + meta]
        self._order.unlink()


def harmful(harm: Harm) -> None:
    """Have tunnels of this process carry changed messages."""

    async def out_of(self: Tunnels, near: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        leaving = Leaving()
        with contextlib.suppress(OSError, EOFError):
            while True:
                frame = bytearray(await near.readexactly(12))
                frame += await near.readexactly(struct.unpack_from(">I", frame, 4)[0])
                harm.done_to(frame)
                to.write(leaving.passed(bytes(frame)))
                await to.drain()
        to.close()

    Tunnels._out_of = out_of  # type: ignore[method-assign]


if __name__ == "__main__":
    harmful(Harm(Path(sys.argv.pop(1))))
    sys.exit(party.main())
