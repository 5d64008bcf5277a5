"""What of SPU's frames goes through a tunnel: none in another party's name. No SPU is needed."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party.frames import Frames
from g2d.protect.multiparty.party.tunnels import Tunnels
from g2d.protect.multiparty.wire import Channel
from smpc_parties import short_folder

PUSH = b"\x0a\x28org.interconnection.link.ReceiverService\x12\x04Push"


def part(field: int, value: bytes | int) -> bytes:
    """A field of protobuf, of less than 128 bytes."""
    if isinstance(value, int):
        return bytes([field << 3, value])
    return bytes([field << 3 | 2, len(value)]) + value


def framed(meta: bytes, body: bytes) -> bytes:
    return b"PRPC" + struct.pack(">II", len(meta) + len(body), len(meta)) + meta + body


def push(sender: bytes = b"", address: bytes = PUSH, more: bytes = b"") -> bytes:
    """As SPU 0.9.5 sends it (seen on its socket): no sender where the rank is 0."""
    meta = part(1, address) + part(3, 0) + part(4, 2)
    return framed(meta, sender + part(2, b"s:1:ALLGATHER\x01\x021") + part(3, b"\x02\0") + more)


ANSWER = framed(part(2, part(1, 0)) + part(3, 0) + part(4, 2), part(1, b""))


@pytest.mark.parametrize("rank", range(3))
def test_frames_in_ones_own_name_go_on_in_whatever_parts_they_come(rank):
    sent = push(part(1, rank) if rank else b"") * 3
    for size in (1, 7, len(sent)):
        frames = Frames(rank, asks=True)
        parts = [frames.passed(sent[at : at + size]) for at in range(0, len(sent), size)]
        assert b"".join(parts) == sent
    assert Frames(rank, asks=False).passed(ANSWER) == ANSWER


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (push(part(1, 2)), "in the name of party 2"),
        (push(), "in the name of party 0"),
        (push(part(1, 1), more=part(1, 2)), "in the name of party 2"),  # the last one counts
        (push(b"\x88\x80\x80\x80\x10\x02" + part(1, 1)), "what none of ours does"),
        (push(part(1, 1), more=b"\x08\x82\x00"), "in the name of party 2"),
        (push(part(1, 1), more=b"\x0a\x01\x02"), "in the name of party"),
        (push(part(1, 1), more=b"\x30\x00"), "what none of ours does"),
        (push(part(1, 1), more=b"\x18"), "does not end"),
        (push(part(1, 1), more=b"\x1a\x7f"), "ends within a field"),
        (push(part(1, 1), more=b"\x1d"), "field of kind 5"),
        (push(part(1, 1), PUSH.replace(b"Push", b"Test")), "another service"),
        (push(part(1, 1), PUSH + part(2, b"x")), "another service"),
        (ANSWER, "what none of ours does"),
        (framed(part(1, PUSH) + part(3, 1), part(1, 1)), "compressed"),
        (framed(part(1, PUSH) + part(5, 9), part(1, 1)), "what none of ours does"),
        (b"POST /org.interconnection.link.ReceiverService/Push HTTP/1.1\r\n\r\n", "no frame"),
        (b"PRPC" + struct.pack(">II", 1 << 31, 2), "no frame"),
        (b"PRPC" + struct.pack(">II", 2, 9), "no frame"),
    ],
    ids=range(18),
)
def test_what_another_party_may_not_send_is_refused(sent, why):
    with pytest.raises(MultipartyError, match=why):
        Frames(1, asks=True).passed(push(part(1, 1)) + sent)


def test_a_side_that_is_dialled_does_not_push():
    with pytest.raises(MultipartyError, match="what none of ours does"):
        Frames(1, asks=False).passed(push(part(1, 1)))


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
    good = push(part(1, 1))
    sent = good + push(part(1, name)) + good
    got = asyncio.run(through(sent, heard.append))
    assert sent.startswith(got)
    assert len(got) == len(sent) if name == 1 else len(got) <= len(good)
    assert [("name of party 2" in why) for why in heard] == [True] * (name - 1)
