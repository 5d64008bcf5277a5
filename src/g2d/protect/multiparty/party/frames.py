"""What of SPU's frames goes between parties: messages of its links, without their sender's word.

SPU's links are yacl's over brpc: frames of `baidu_std`, "PRPC", lengths of body and head, head (an
RpcMeta: service, method, the call's number), body (a PushRequest, which names its sender's rank).
brpc takes other protocols and services at the same socket, and yacl believes the rank. So heads do
not travel: a party sends kind, size, number and body, and whoever gets that makes the head anew. A
body that names another party than the certificate of its connection ends the session. It saves some
seventy bytes of each message, too.

Sources: brpc, `docs/en/baidu_std.md`; yacl, `link/transport/interconnection_link.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from g2d.protect.multiparty.wire import WireError

_MAGIC = b"PRPC"
_FRAME = struct.Struct(">4sII")
_SHORT = struct.Struct(">BIQ")
_MOST = 1 << 26  # what brpc itself takes
_PUSH, _ANSWER = 1, 2
_HEADS = {
    _PUSH: b"\x0a\x30\x0a\x28org.interconnection.link.ReceiverService\x12\x04Push\x18\x00\x20",
    _ANSWER: b"\x12\x02\x08\x00\x18\x00\x20",
}
"""Heads as SPU 0.9.5 writes them, up to the call's number: not compressed, no error."""
_SENDER = 1
_FIELDS = frozenset({_SENDER, 2, 3, 4, 5})  # key, value, kind of transport, place of a part
_VARINT, _BYTES = 0, 2


class Leaving:
    """Frames of one's own SPU, as they travel."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def passed(self, part: bytes) -> bytes:
        """What travels of whole frames; raises `WireError` where SPU says what it never does."""
        return _passed(self._rest, part, _FRAME.size, self._one)

    @staticmethod
    def _one(data: bytearray, at: int) -> tuple[int, bytes] | None:
        magic, size, head = _FRAME.unpack_from(data, at)
        start, end = at + _FRAME.size, at + _FRAME.size + size
        if magic != _MAGIC or head > size or size > _MOST:
            raise WireError("this party's SPU has sent what is no frame")
        if end > len(data):
            return None
        for kind, known in _HEADS.items():
            if data.startswith(known, start):
                number, stop = _varint(data, start + len(known), start + head)
                if stop == start + head and number < 1 << 64:
                    body = bytes(data[stop:end])
                    return end, _SHORT.pack(kind, len(body), number) + body
        raise WireError("this party's SPU has sent an error, or what is none of its messages")


class Coming:
    """Frames for one's own SPU, of what another party has sent.

    Args:
        rank: whose it is, by the certificate. asks: whether it is the side that dialled, and
            pushes; else it answers.
    """

    def __init__(self, rank: int, asks: bool) -> None:
        self._rank, self._kind = rank, _PUSH if asks else _ANSWER
        self._rest = bytearray()

    def passed(self, part: bytes) -> bytes:
        """Whole frames; raises `WireError` where one may not be."""
        return _passed(self._rest, part, _SHORT.size, self._one)

    def _one(self, data: bytearray, at: int) -> tuple[int, bytes] | None:
        kind, size, number = _SHORT.unpack_from(data, at)
        start, end = at + _SHORT.size, at + _SHORT.size + size
        if kind != self._kind or size > _MOST:
            raise WireError(f"party {self._rank} has sent what is no message of SPU's")
        if end > len(data):
            return None
        if kind == _PUSH:
            try:
                self._check(data, start, end)
            except ValueError as error:
                raise WireError(
                    f"party {self._rank} has sent a message of SPU's: {error}"
                ) from error
        head = _HEADS[kind] + _as_varint(number)
        body = bytes(data[start:end])
        return end, _FRAME.pack(_MAGIC, len(head) + len(body), len(head)) + head + body

    def _check(self, data: bytearray, start: int, end: int) -> None:
        pushed = list(_fields(data, start, end))
        if any(field not in _FIELDS for field, _ in pushed):
            raise ValueError("it says what none of ours does")
        for name in [value for field, value in pushed if field == _SENDER] or [0]:
            if name != self._rank:
                raise ValueError(f"it is sent in the name of party {name!r}")


def _passed(
    rest: bytearray, part: bytes, least: int,
    one: Callable[[bytearray, int], tuple[int, bytes] | None],
) -> bytes:  # fmt: skip
    """Add a part to what has come, and take whole units off."""
    rest += part
    at, made = 0, list[bytes]()
    while len(rest) - at >= least and (found := one(rest, at)) is not None:
        at, data = found
        made.append(data)
    del rest[:at]
    return b"".join(made)


def _fields(data: bytearray, at: int, end: int) -> Iterator[tuple[int, int | None]]:
    """Fields of a protobuf message, and values of numbers.

    Raises:
        ValueError: it is none, or has fields of kinds that are not used.
    """
    while at < end:
        tag, at = _varint(data, at, end)
        size, at = _varint(data, at, end)
        if tag & 7 == _VARINT:
            yield tag >> 3, size
        elif tag & 7 == _BYTES and size <= end - at:
            yield tag >> 3, None
            at += size
        else:
            raise ValueError(f"it has a field of kind {tag & 7}, or ends within one")


def _varint(data: bytearray, at: int, end: int) -> tuple[int, int]:
    value = 0
    for place in range(at, min(at + 10, end)):
        value |= (data[place] & 127) << (7 * (place - at))
        if data[place] < 128:
            return value, place + 1
    raise ValueError("it has a number that does not end")


def _as_varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])
