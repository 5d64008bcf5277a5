"""What of SPU's frames another party may send: messages in its own name, and answers to ours.

SPU's links are yacl's over brpc: frames of `baidu_std`, "PRPC", lengths of body and head, head (an
RpcMeta), body (a PushRequest, which names its sender's rank). brpc takes other protocols at the
same socket, and yacl believes the rank. So nothing else goes on than a Push that names the party
whose certificate its connection has, and, where we dialled, answers.

Sources: brpc, `docs/en/baidu_std.md`; yacl, `link/transport/interconnection_link.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from g2d.protect.multiparty.wire import WireError

_MAGIC = b"PRPC"
_HEAD = struct.Struct(">II")
_FIRST = len(_MAGIC) + _HEAD.size
_MOST = 1 << 26  # what brpc itself takes
_SERVICE, _METHOD = b"org.interconnection.link.ReceiverService", b"Push"
_REQUEST, _RESPONSE = 1, 2  # fields of RpcMeta
_ADDRESS = [(1, _SERVICE), (2, _METHOD)]
_COMPRESSED = 3
_META = frozenset({_COMPRESSED, 4})  # and the number that a message and its answer have
_SENDER = 1
_PUSH = frozenset({_SENDER, 2, 3, 4, 5})  # key, value, kind of transport, place of a part
_VARINT, _BYTES = 0, 2
Field = tuple[int, int | bytes]


class Frames:
    """Frames of one connection, from one party.

    Args:
        rank: whose they are, by the certificate. asks: whether it is the side that dialled, and
            pushes; else it answers.
    """

    def __init__(self, rank: int, asks: bool) -> None:
        self._rank, self._asks = rank, asks
        self._rest = bytearray()

    def passed(self, part: bytes) -> bytes:
        """Whole frames, of what has come so far, that go on.

        Raises:
            WireError: one of them may not.
        """
        self._rest += part
        at = 0
        while len(self._rest) - at >= _FIRST:
            body, meta = _HEAD.unpack_from(self._rest, at + len(_MAGIC))
            if self._rest[at : at + len(_MAGIC)] != _MAGIC or meta > body or body > _MOST:
                raise WireError(f"party {self._rank} has sent what is no frame of SPU's")
            start, end = at + _FIRST, at + _FIRST + body
            if len(self._rest) < end:
                break
            try:
                self._check(bytes(self._rest[start : start + meta]), self._rest, start + meta, end)
            except (IndexError, ValueError) as error:
                raise WireError(f"party {self._rank} has sent a frame of SPU's: {error}") from error
            at = end
        whole = bytes(self._rest[:at])
        del self._rest[:at]
        return whole

    def _check(self, meta: bytes, data: bytearray, start: int, end: int) -> None:
        kind = _REQUEST if self._asks else _RESPONSE
        about = list(_fields(meta, 0, len(meta)))
        told = [value for field, value in about if field == kind]
        if len(told) != 1 or any(field != kind and field not in _META for field, _ in about):
            raise ValueError("its head says what none of ours does")
        if any(field == _COMPRESSED and value != 0 for field, value in about):
            raise ValueError("it is compressed")
        if not self._asks:
            return
        address = told[0] if isinstance(told[0], bytes) else b""
        if list(_fields(address, 0, len(address))) != _ADDRESS:
            raise ValueError("it is for another service than SPU's links")
        pushed = list(_fields(data, start, end))
        if any(field not in _PUSH for field, _ in pushed):
            raise ValueError("it says what none of ours does")
        for name in [value for field, value in pushed if field == _SENDER] or [0]:
            if name != self._rank:
                raise ValueError(f"it is sent in the name of party {name!r}")


def _fields(data: bytes | bytearray, at: int, end: int) -> Iterator[Field]:
    """Fields of a protobuf message; raises `ValueError` where it is none, or of kinds not used."""
    while at < end:
        tag, at = _varint(data, at, end)
        if tag & 7 == _VARINT:
            value, at = _varint(data, at, end)
            yield tag >> 3, value
        elif tag & 7 == _BYTES:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise ValueError("it ends within a field")
            yield tag >> 3, bytes(data[at : at + size])
            at += size
        else:
            raise ValueError(f"it has a field of kind {tag & 7}")


def _varint(data: bytes | bytearray, at: int, end: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= end:
            break
        byte = data[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError("it has a number that does not end")
