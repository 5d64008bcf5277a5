"""Frames over mutual TLS 1.3: a JSON header and a body. Standard library alone.

Both sides show a certificate that `parties.toml` pins; who is asked is known by it, and never by
what is said. There are no session tickets, so that no connection goes on where another stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from g2d.core.platforms import others_may_read
from g2d.errors import DAMAGE
from g2d.protect.multiparty.config import Config, Who, as_pem, fingerprint
from g2d.protect.multiparty.errors import MultipartyError

VERSION = 3
"""Of what is said on these connections; it rises with each change of it."""
MOST_HEADER = 1 << 18
_HEAD = struct.Struct(">IQ")
Header = Mapping[str, Any]


class WireError(MultipartyError):
    """What came is no frame of ours, or too large."""


def context(server: bool, certificate: Path, key: Path, trusted: Sequence[bytes]) -> ssl.SSLContext:
    """TLS 1.3 with a certificate of one's own, which trusts these certificates (DER) alone.

    Raises:
        MultipartyError: certificate or key cannot be read, do not belong together, or the key is
            open to others.
    """
    side = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    made = ssl.SSLContext(side)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False  # the certificate itself is pinned
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if server:
        made.num_tickets = 0
    try:
        if others_may_read(key.stat().st_mode):
            raise MultipartyError(f"{key} is open to others: run `chmod 600 {key}` first")
        made.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise MultipartyError(
            f"cannot use the certificate {certificate} with the key {key}: {error}"
        ) from error
    if trusted:
        made.load_verify_locations(cadata=as_pem(trusted))
    return made


def everyone(config: Config) -> list[bytes]:
    """Certificates of all who may speak with a party."""
    parties = [der for place in config.parties for der in place.certificates]
    return [*parties, *config.dealers, *config.clients]


def whose(config: Config, tls: Any) -> tuple[Who, str]:
    """Whose the peer's certificate is, and its fingerprint.

    Raises:
        WireError: it is none that is pinned (one that a pinned one has issued, say).
    """
    mark = fingerprint(tls.getpeercert(True) or b"")
    if mark not in config.roles:
        raise WireError("the certificate is none that parties.toml names")
    return config.roles[mark], mark


def pack(header: Header, body: bytes = b"") -> bytes:
    """A frame's beginning; the body follows it."""
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= MOST_HEADER
    return _HEAD.pack(len(text), len(body)) + text


def unpack_head(head: bytes, most: int) -> tuple[int, int]:
    """Lengths of header and body.

    Raises:
        WireError: they are larger than what is taken here.
    """
    length, body = _HEAD.unpack(head)
    if length > MOST_HEADER or body > most:
        raise WireError(f"a message of {length} and {body} bytes, at most {MOST_HEADER} and {most}")
    return length, body


def unpack_header(text: bytes) -> dict[str, Any]:
    """The header; raises `WireError` where it is none."""
    try:
        found = json.loads(text)
        if isinstance(found, dict) and isinstance(found.get("kind"), str):
            return found
    except DAMAGE:
        pass
    raise WireError("a message without a header of ours")


def check_version(told: Header, name: str) -> None:
    """Raise `MultipartyError` unless `name` says that it speaks as this side does."""
    if told.get("version") != VERSION:
        raise MultipartyError(
            f"{name} speaks version {told.get('version')!r} of what parties say, and this side"
            f" {VERSION}: install the same release of g2d everywhere"
        )


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def quiet(handler: Handler) -> Handler:
    """A handler of connections whose end with the process is no trace on the terminal."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await handler(reader, writer)

    return connected


class Channel:
    """A connection with a peer, in a loop; one writer at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._turn = asyncio.Lock()

    async def send(self, header: Header, body: bytes = b"") -> None:
        """Send a frame; raises `OSError` where the connection is gone."""
        async with self._turn:
            self.writer.write(pack(header, body))
            if body:
                self.writer.write(body)
            await self.writer.drain()

    async def receive(self, most: int = 0) -> tuple[dict[str, Any], bytes]:
        """Receive a frame with a body of at most `most` bytes.

        Raises:
            EOFError: the connection ended. OSError: it broke. WireError: it is no frame.
        """
        head = await self.reader.readexactly(_HEAD.size)
        length, size = unpack_head(head, most)
        header = unpack_header(await self.reader.readexactly(length))
        return header, await self.reader.readexactly(size) if size else b""

    async def close(self) -> None:
        """Close it."""
        self.writer.close()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(1.0):
                await self.writer.wait_closed()


class Line:
    """A connection with a party, for who waits for each answer: clients and dealers.

    Raises:
        MultipartyError: nobody answers there, or it is not that party, or we are refused.
    """

    def __init__(self, config: Config, rank: int, own: tuple[Path, Path], seconds: float) -> None:
        place = config.parties[rank]
        self.rank, self.name = rank, f"party {rank} at {place.address[0]}:{place.address[1]}"
        tls = context(False, *own, place.certificates)
        try:
            plain = socket.create_connection(place.address, seconds)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._line = tls.wrap_socket(plain)
            self._line.settimeout(seconds)
        except ssl.SSLCertVerificationError as error:
            raise MultipartyError(
                f"{self.name} shows another certificate than parties.toml has for rank {rank}, or"
                f" one that has expired ({error.verify_message})"
            ) from error
        except OSError as error:
            raise MultipartyError(f"{self.name} does not answer: {error}") from error

    def patience(self, seconds: float) -> None:
        """For how long each answer is waited for from now on."""
        self._line.settimeout(seconds)

    def greet(self, role: str) -> dict[str, Any]:
        """Say who speaks, and be welcomed.

        Raises:
            MultipartyError: the party is gone, refuses, or speaks another version.
        """
        told, _ = self.ask({"kind": role, "version": VERSION})
        check_version(told, self.name)
        return told

    def ask(self, header: Header, body: bytes = b"", most: int = 0) -> tuple[dict[str, Any], bytes]:
        """Send a frame and wait for the answer; see `send` and `receive`."""
        self.send(header, body)
        return self.receive(most)

    def send(self, header: Header, body: bytes = b"") -> None:
        """Send a frame; raises `MultipartyError` where the party is gone."""
        try:
            self._line.sendall(pack(header, body))
            if body:
                self._line.sendall(body)
        except OSError as error:
            raise MultipartyError(f"{self.name} is gone: {self._why(error)}") from error

    def receive(self, most: int = 0) -> tuple[dict[str, Any], bytes]:
        """Receive a frame.

        Raises:
            MultipartyError: the party is gone, or says why it refuses.
        """
        try:
            length, size = unpack_head(self._exactly(_HEAD.size), most)
            header = unpack_header(self._exactly(length))
            body = self._exactly(size)
        except OSError as error:
            raise MultipartyError(f"{self.name} is gone: {self._why(error)}") from error
        if header["kind"] == "refused":
            raise MultipartyError(f"{self.name} refuses: {header.get('why')}")
        return header, body

    def ready(self) -> bool:
        """Whether something has come that was decrypted and not read yet."""
        return self._line.pending() > 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._line.fileno()

    @staticmethod
    def _why(error: OSError) -> str:
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return f"it does not take our certificate ({error.reason})"
        return str(error) or type(error).__name__

    def _exactly(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            part = self._line.recv(min(missing, 1 << 20))
            if not part:
                raise ConnectionResetError("it hung up")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close it."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def receive_all(
    lines: Sequence[Line], most: int, seconds: float
) -> list[tuple[dict[str, Any], bytes]]:
    """What all parties answer, in their order; whoever refuses first is heard at once.

    A machine that is gone without a word is noticed by the others, who say so.

    Raises:
        MultipartyError: one is gone, or refuses, or `seconds` are over.
    """
    found: dict[Line, tuple[dict[str, Any], bytes]] = {}
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for line in lines:
            selector.register(line, selectors.EVENT_READ, line)
        while len(found) < len(lines):
            here = [line for line in lines if line not in found and line.ready()]
            if not here:
                left = until - time.monotonic()
                here = [key.data for key, _ in selector.select(max(0.0, left))]
            if not here:
                missing = next(line for line in lines if line not in found)
                raise MultipartyError(f"{missing.name} has not answered for {seconds:g} seconds")
            for line in here:
                found[line] = line.receive(most)
                selector.unregister(line)
    return [found[line] for line in lines]
