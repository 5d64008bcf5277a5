"""What of SPU's frames goes through a tunnel: none in another party's name. No SPU is needed."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party.frames import Coming, Leaving
from g2d.protect.multiparty.party.tunnels import Tunnels
from g2d.protect.multiparty.wire import Channel
from smpc_parties import short_folder

PUSH = b"\x0a\x28org.interconnection.link.ReceiverService\x12\x04Push"
LONG = bytes(range(256)) * 300


def part(field: int, value: bytes | int) -> bytes:
    """A field of protobuf, of less than 128 bytes."""
    if isinstance(value, int):
        return bytes([field << 3, value])
    return bytes([field << 3 | 2, len(value)]) + value


def framed(meta: bytes, body: bytes) -> bytes:
    return b"PRPC" + struct.pack(">II", len(meta) + len(body), len(meta)) + meta + body


def body(sender: bytes = b"", more: bytes = b"") -> bytes:
    """As SPU 0.9.5 sends it (seen on its socket): no sender where the rank is 0."""
    return sender + part(2, b"s:1:ALLGATHER\x01\x021") + part(3, b"\x02\0") + more


def push(rank: int, number: bytes = b"\x02", more: bytes = b"") -> bytes:
    meta = part(1, PUSH) + part(3, 0) + b"\x20" + number
    return framed(meta, body(part(1, rank) if rank else b"", more))


def short(kind: int, sent: bytes, size: int | None = None) -> bytes:
    return struct.pack(">BIQ", kind, len(sent) if size is None else size, 2) + sent


ANSWER = framed(part(2, part(1, 0)) + part(3, 0) + part(4, 2), part(1, b""))
NUMBERS = [b"\x02", b"\x82\x80\x80\x80\x10", b"\xff" * 9 + b"\x01"]


@pytest.mark.parametrize("rank", range(3))
def test_frames_in_ones_own_name_arrive_in_whatever_parts_they_come(rank):
    value = b"\x1a\x80\xd8\x04" + LONG
    pushed = b"".join(push(rank, number, value) for number in NUMBERS)
    for sent, asks in ((pushed, True), (ANSWER * 3, False)):
        for size in (1 if sent is not pushed else 4099, 7_001, len(sent)):
            leaving, coming = Leaving(), Coming(rank, asks)
            parts = [leaving.passed(sent[at : at + size]) for at in range(0, len(sent), size)]
            travels = b"".join(parts)
            assert len(travels) < len(sent)
            got = [coming.passed(travels[at : at + size]) for at in range(0, len(travels), size)]
            assert b"".join(got) == sent


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (short(1, body(part(1, 2))), "in the name of party 2"),
        (short(1, body()), "in the name of party 0"),
        (short(1, body(part(1, 1), part(1, 2))), "in the name of party 2"),  # the last one counts
        (short(1, body(b"\x88\x80\x80\x80\x10\x02" + part(1, 1))), "what none of ours does"),
        (short(1, body(part(1, 1), b"\x08\x82\x00")), "in the name of party 2"),
        (short(1, body(part(1, 1), b"\x0a\x01\x02")), "in the name of party"),
        (short(1, body(part(1, 1), b"\x30\x00")), "what none of ours does"),
        (short(1, body(part(1, 1), b"\x18")), "does not end"),
        (short(1, body(part(1, 1), b"\x1a\x7f")), "ends within one"),
        (short(1, body(part(1, 1), b"\x1d\x00")), "field of kind 5"),
        (short(1, body(part(1, 1), b"\x08" + b"\xff" * 12)), "does not end"),
        (short(2, part(1, b"")), "no message"),
        (short(3, b""), "no message"),
        (short(1, b"", 1 << 27), "no message"),
        (push(1), "no message"),
        (b"POST /org.interconnection.link.ReceiverService/Push HTTP/1.1\r\n\r\n", "no message"),
    ],
    ids=range(16),
)
def test_what_another_party_may_not_send_is_refused(sent, why):
    with pytest.raises(MultipartyError, match=why):
        Coming(1, asks=True).passed(short(1, body(part(1, 1))) + sent)


def test_a_side_that_is_dialled_does_not_push():
    with pytest.raises(MultipartyError, match="no message"):
        Coming(1, asks=False).passed(short(1, body(part(1, 1))))


@pytest.mark.parametrize(
    "sent",
    [
        framed(part(1, PUSH.replace(b"Push", b"Test")) + part(3, 0) + part(4, 2), body()),
        framed(part(1, PUSH) + part(3, 1) + part(4, 2), body()),
        framed(part(1, PUSH) + part(3, 0) + part(4, 2) + part(5, 9), body()),
        framed(part(2, part(1, 5)) + part(3, 0) + part(4, 2), b""),  # an error
        b"PRPC" + struct.pack(">II", 1 << 31, 2),
        b"PRPC" + struct.pack(">II", 2, 9),
        b"HTTP/1.1 200 OK\r\n",
    ],
    ids=range(7),
)
def test_what_spu_never_says_does_not_leave(sent):
    with pytest.raises(MultipartyError, match="this party's SPU"):
        Leaving().passed(push(0) + sent)


async def through(sent: bytes, heard: Any) -> bytes:
    """What party 0's SPU gets of what party 1 sends through its connection."""
    with short_folder() as folder:
        got, came = bytearray(), asyncio.Event()

        async def spu(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while part := await reader.read(1 << 16):
                got.extend(part)
            writer.close()
            came.set()

        async def dial(rank: int) -> Channel:
            raise AssertionError

        tunnels = Tunnels(0, range(3), dial, Path(folder), heard)
        listens = await asyncio.start_unix_server(spu, str(Path(folder) / "0"))
        far = asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()
        place = str(Path(folder) / "far")

        async def dialled(*pair: Any) -> None:
            await far.put(pair)

        door = await asyncio.start_unix_server(dialled, place)
        _, writer = await asyncio.open_unix_connection(place)
        carried = asyncio.create_task(tunnels.into(Channel(*await far.get()), 1))
        writer.write(sent)
        writer.write_eof()
        await came.wait()
        writer.close()
        await carried
        tunnels.close()
        listens.close()
        door.close()
    return bytes(got)


@pytest.mark.parametrize("name", [1, 2])
def test_a_tunnel_ends_where_its_party_takes_anothers_name(name):
    heard: list[str] = []
    good = short(1, body(part(1, 1)))
    got = asyncio.run(through(good + short(1, body(part(1, name))) + good, heard.append))
    assert (push(1) * 3).startswith(got)
    assert len(got) == 3 * len(push(1)) if name == 1 else len(got) <= len(push(1))
    assert [("name of party 2" in why) for why in heard] == [True] * (name - 1)
