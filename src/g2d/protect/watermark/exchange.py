"""One HTTP request of ours: no redirect is followed, and no answer is read without bounds."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from g2d.errors import G2DError

_MOST = 1 << 24  # bytes of an answer
_PART = 1 << 16


class ExchangeError(G2DError):
    """A server cannot be reached, or does not answer as HTTP does."""


@dataclass(frozen=True)
class Reply:
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> str:
        """The status and the beginning of the body, for messages."""
        return f"{self.status}: {self.body[:200].decode(errors='replace')}".strip()


def ask(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float = 30.0,
    ca: str = "",
) -> Reply:
    """Send one request and read the answer.

    Args:
        timeout: seconds until the answer has come whole. ca: file of the certificates that a server
            is trusted by; "": those of the system.

    Raises:
        ExchangeError: there is no such server, it is not trusted, or its answer is none.
    """
    parts = _parts(url)
    port, target = parts.port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname or "", port, timeout=timeout, context=_context(ca)
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", port, timeout=timeout)
    until = time.monotonic() + timeout
    try:
        connection.request(method, target, body, dict(headers or {}))
        response = connection.getresponse()
        data = _read(response, until)
        found = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, found, data)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        words = str(error) or type(error).__name__
        raise ExchangeError(f"{url} does not answer: {words}") from error
    finally:
        connection.close()


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise ExchangeError(f"{url!r} is no address: give http://host:port or https://host")
    return parts


def _context(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except OSError as error:  # of which ssl.SSLError is one
        raise ExchangeError(
            f"{ca} holds no certificates to trust a server by ({error}): give a file of PEM"
        ) from error


def _read(response: http.client.HTTPResponse, until: float) -> bytes:
    found = bytearray()
    while part := response.read1(_PART):
        found += part
        if len(found) > _MOST:
            raise OSError(f"its answer is larger than {_MOST} bytes")
        if time.monotonic() > until:
            raise TimeoutError("its answer does not end")
    return bytes(found)
