"""Messages between a service and its evaluators: a head in JSON, then bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

_SIZES = struct.Struct("<IQ")

Head = Mapping[str, Any]


def write(stream: IO[bytes], head: Head, payload: bytes = b"") -> None:
    """Write one message.

    Raises:
        OSError: nobody reads any more.
    """
    text = json.dumps(dict(head)).encode()
    stream.write(_SIZES.pack(len(text), len(payload)) + text)
    stream.write(payload)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None: there are no more, or one that was cut off."""
    sizes = stream.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        return None
    long, more = _SIZES.unpack(sizes)
    text = stream.read(long)
    payload = stream.read(more) if more else b""
    if len(text) < long or len(payload) < more:
        return None
    head: dict[str, Any] = json.loads(text)
    return head, payload
