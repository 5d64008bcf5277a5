"""The headers of a request that there may be one of: read once, and refused if there are two.

Of two, a proxy may believe the first and we the last.
"""

from __future__ import annotations

from collections.abc import Iterable

from g2d.service.http.protocol import HEADER_LENGTH, RequestError

Told = dict[bytes, bytes]
"""Values of the headers that `single` knows, by their names in lower case."""

_SINGLE = frozenset(
    {
        b"host", b"origin", b"authorization", b"content-length", b"content-encoding",
        b"content-type", HEADER_LENGTH,
    }
)  # fmt: skip


def single(headers: Iterable[tuple[bytes, bytes]]) -> Told:
    """Return the values of the headers that may come once.

    Raises:
        RequestError: 400, one of them came twice.
    """
    told: Told = {}
    for name, value in headers:
        if name in _SINGLE:
            if name in told:
                raise RequestError(400, f"the header {name.decode()} may come once")
            told[name] = value
    return told
