"""One HTTP request of ours, and who asks: the transport of every command that asks a server.

No redirect is followed, and no answer is read without bounds. Knows neither torch nor numpy.
"""

from __future__ import annotations

import http.client
import os
import ssl
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, urlsplit

from g2d.core.files import MOST_TEXT, read_text
from g2d.core.platforms import others_may_read
from g2d.errors import G2DError, SettingsError

TOKEN_VARIABLE = "G2D_TOKEN"  # noqa: S105 (its name, not a token)

_PART = 1 << 16


class ExchangeError(G2DError):
    """A server cannot be reached, refuses, or answers what it should not."""


@dataclass(frozen=True)
class Credentials:
    """How a client says who it is, and whom it trusts.

    Attributes:
        token: sent as `Authorization: Bearer`. ca: file of certificates (PEM) that the server's is
            verified by; None: the system's. certificate: file of a certificate with its key (PEM).

    Raises:
        SettingsError: the token is none that a header may hold. It is not repeated.
    """

    token: str = field(default="", repr=False)
    ca: Path | None = None
    certificate: Path | None = None

    def __post_init__(self) -> None:
        if not _sendable(self.token):
            raise SettingsError("the token holds what no header may: expected ASCII without spaces")

    @classmethod
    def read(cls, token_file: Path | None, ca: Path | None, certificate: Path | None) -> Self:
        """Read the token from a file, or else from $G2D_TOKEN.

        Raises:
            SettingsError: the file cannot be read, is open to others, or holds no token.
        """
        text = os.environ.get(TOKEN_VARIABLE, "")
        if token_file is not None:
            try:
                if others_may_read(stat.S_IMODE(token_file.stat().st_mode)):
                    raise SettingsError(
                        f"{token_file} is open to others: run `chmod 600 {token_file}` first"
                    )
                text = read_text(token_file, MOST_TEXT, follow=True)
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"cannot read the token in {token_file}: {error}") from error
        text = text.strip()
        if not _sendable(text) or (token_file and not text):
            raise SettingsError(
                f"{token_file or TOKEN_VARIABLE} holds no token, which is one line of ASCII without"
                " spaces"
            )
        return cls(text, ca, certificate)

    @cached_property
    def context(self) -> ssl.SSLContext:
        """What a connection is made with.

        Raises:
            SettingsError: a file holds no certificate, or no key that fits it.
        """
        try:
            made = ssl.create_default_context(cafile=self.ca)
            if self.certificate:
                made.load_cert_chain(self.certificate)
        except OSError as error:  # of which ssl.SSLError is one
            names = " or ".join(str(file) for file in (self.ca, self.certificate) if file)
            raise SettingsError(
                f"{names or 'the certificates of this system'} cannot be used for TLS: {error}"
            ) from error
        return made


@dataclass(frozen=True)
class Reply:
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> str:
        """The status and the beginning of the body on one line, for messages."""
        words = " ".join(self.body[:200].decode(errors="replace").split())
        return f"{self.status}: {words}" if words else str(self.status)


def ask(
    method: str,
    url: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    known: Credentials | None = None,
    timeout: float = 30.0,
) -> Reply:
    """Send one request and read the answer, of at most `MOST_TEXT` bytes.

    Args:
        body: whole, or in parts as they are sent, whose Content-Length `headers` say.
        known: who asks; None: nobody in particular. timeout: seconds until there is a connection,
            between two parts of the answer, and until it has come whole.

    Raises:
        ExchangeError: there is no such server, it is not trusted, or its answer is none.
        SettingsError: a certificate of ours cannot be used.
    """
    parts, known = _parts(url), known or Credentials()
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sent = dict(headers or {})
    if known.token:
        sent["Authorization"] = f"Bearer {known.token}"
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout, context=known.context)
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    until = time.monotonic() + timeout
    try:
        try:
            connection.request(method, target, body, sent)
        except (BrokenPipeError, ConnectionResetError):
            # Refused before it was sent whole: what the server said of it may have arrived.
            if body is None:
                raise
        with connection.getresponse() as response:
            data = _read(response, until)
            found = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, found, data)
    except (OSError, http.client.HTTPException, ValueError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ExchangeError(f"{url} does not answer: {words}") from error
    finally:
        connection.close()


def _sendable(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise ExchangeError(f"{url!r} is no address: give http://host:port or https://host")
    return parts


def _read(response: http.client.HTTPResponse, until: float) -> bytes:
    found = bytearray()
    while part := response.read1(_PART):
        found += part
        if len(found) > MOST_TEXT:
            raise OSError(f"its answer is larger than {MOST_TEXT} bytes")
        if time.monotonic() > until:
            raise TimeoutError("its answer does not end")
    if response.length:
        raise OSError("its answer ends too early")
    return bytes(found)
