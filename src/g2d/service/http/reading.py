"""A request's body, read whole and never beyond its bounds; what refuses one. Parses nothing."""

from __future__ import annotations

from g2d.service.http.bodies import Body, OverBudgetError
from g2d.service.http.headers import Told
from g2d.service.http.protocol import LARGE, RequestError
from g2d.service.http.types import Receive


def check_head(told: Told, most: int) -> None:
    """Refuse what a head announces and nobody will read.

    Raises:
        RequestError: 415, it is compressed; 413, it is larger than `most` bytes.
    """
    length = told.get(b"content-length")
    if told.get(b"content-encoding") not in (None, b"identity"):
        raise RequestError(415, "compressed bodies are not taken; send them as they are")
    if length is not None and length.isdigit() and int(length[:16]) > most:
        raise too_large(most)


async def next_part(receive: Receive) -> tuple[bytes, bool]:
    """Return what comes next of a body, and whether it is whole with that.

    Raises:
        RequestError: 400, the client has gone.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise RequestError(400, "the client has gone")
    part: bytes = message.get("body", b"")
    return part, not message.get("more_body")


async def read_body(receive: Receive, body: Body, most: int) -> bytes:
    """Read a body of at most `most` bytes; most come in one message, a large one is counted.

    Raises:
        RequestError: 413, it is larger; 400, the client has gone.
        OverBudgetError: too many bytes are under way.
    """
    parts: list[bytes] = []
    while True:
        part, whole = await next_part(receive)
        if body.size + len(part) > most:
            raise too_large(most)
        if not whole or body.size or len(part) > LARGE:
            body.add(len(part))
        parts.append(part)
        if whole:
            break
    body.arrived()
    return parts[0] if len(parts) == 1 else b"".join(parts)


def too_large(most: int) -> RequestError:
    """What refuses a body of more than `most` bytes."""
    return RequestError(413, f"the body is larger than {most} bytes; send fewer inputs")


def over_budget(error: OverBudgetError) -> RequestError:
    """What refuses a body for which there is no room."""
    ends = (b"connection", b"close")  # the rest of the body is not read
    if error.own:
        return RequestError(429, "too many bytes of this client's are under way; send fewer", ends)
    return RequestError(503, "too many bytes are under way already; send again in a second", ends)
