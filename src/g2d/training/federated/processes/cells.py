"""NVFlare as the transport: bytes under mutual TLS by its cells over gRPC, and whose they are.

A cell is one end of NVFlare's network. Of it are used connections, certificates and requests with
a reply; a filter before anything is decoded lets nothing else through: neither its own topics, nor
messages for other cells, nor payloads in its own object format. Its TCP driver is not used: one
stranger who connects and says nothing keeps everybody from it (its handshake is in the accept
loop). Knows no torch.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from g2d.errors import G2DError, SettingsError
from g2d.training.federated.processes.kits import SERVER, Kit, check_installed, split_address
from g2d.training.federated.processes.words import TOPICS, Reply, decode_reply

CHANNEL = "g2d"
SECONDS = 60.0  # for a reply
_ENVELOPE = 1 << 16  # bytes that NVFlare adds to a message, at most
_HANDSHAKE = 10_000  # milliseconds
_LINES, _AT_ONCE = 2, 4  # connections, and requests in work, of one certificate
_STREAMS = 128  # threads of the server, one a connection

Handle = Callable[[str, str, bytes], Reply]
"""Answers who (the name in the certificate), what (a topic) and bytes."""


class Unreachable(G2DError):  # noqa: N818
    """The server does not reply: it is not there, or busy, or refuses the connection."""


def _configure(most: int, clients: int) -> None:
    """Have NVFlare hold to our limits; it reads a file, once in a process.

    Args:
        most: bytes of a message.
    """
    check_installed()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to stderr what is said here better
    from nvflare.fuel.f3.comm_config import CommConfigurator
    from nvflare.fuel.utils.config_service import ConfigService

    logging.getLogger("nvflare").setLevel(logging.CRITICAL)
    frame = most + _ENVELOPE
    options = [
        ["grpc.max_receive_message_length", frame], ["grpc.max_send_message_length", frame],
        ["grpc.so_reuseport", 0], ["grpc.server_handshake_timeout_ms", _HANDSHAKE],
        ["grpc.max_concurrent_streams", _LINES],
        ["grpc.max_allowed_incoming_connections", _most_lines()],
    ]  # fmt: skip
    told = {
        "allow_adhoc_conns": False,
        "max_message_size": frame,
        "grpc": {"max_workers": max(_STREAMS, 2 * _LINES * clients), "options": options},
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "comm_config.json").write_text(json.dumps(told))
        ConfigService.initialize(section_files={}, config_path=[folder])
        CommConfigurator.reset()
        if CommConfigurator().get_config() != told:
            raise G2DError("NVFlare reads another comm_config.json than ours; is one set for it?")


def _most_lines() -> int:
    """Connections of all together, strangers' too: half of the files that a process may have open.

    A server that has none left can keep nothing, and ends.
    """
    try:
        import resource
    except ImportError:  # Windows counts handles, of which there are millions
        return 1 << 16
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:  # -1 on Linux
        return 1 << 16
    return min(1 << 16, max(8, files // 2))


class _OneEnd:
    """Lets a certificate name one end, as itself: NVFlare keeps all that it names, and for good."""

    def require_match(self, name: str, certified: str, line: str) -> None:
        """Refuse an end (`line` says which) of another name than its certificate's."""
        if name != certified:
            raise ValueError(f"{line} is {certified!r} by its certificate, and says {name!r}")


def _credentials(kit: Kit) -> dict[str, str]:
    from nvflare.fuel.f3.drivers.driver_params import DriverParams

    side = (
        (DriverParams.SERVER_CERT, DriverParams.SERVER_KEY)
        if kit.is_server
        else (DriverParams.CLIENT_CERT, DriverParams.CLIENT_KEY)
    )
    files = {DriverParams.CA_CERT: kit.root, side[0]: kit.certificate, side[1]: kit.key}
    return {name.value: str(path) for name, path in files.items()}


class ServerCell:
    """The server's end.

    Args:
        bind: HOST:PORT to listen at. most: bytes of a message. handle: is called in threads of
            NVFlare's, with the name of the sender's certificate.

    Raises:
        SettingsError: the address cannot be bound.
    """

    def __init__(self, kit: Kit, bind: str, most: int, handle: Handle) -> None:
        _check_free(bind)
        _configure(most, len(kit.clients))
        from nvflare.fuel.f3.cellnet.core_cell import CoreCell

        self._handle, self._busy, self._lock = handle, Counter[str](), threading.Lock()
        self._cell: Any = CoreCell(SERVER, f"grpc://{bind}", True, _credentials(kit))
        self._cell.communicator.conn_manager.identity_resolver = _OneEnd()
        self._cell.add_incoming_filter("*", "*", self._sieve)
        for topic in TOPICS:
            self._cell.register_request_cb(CHANNEL, topic, self._take)

    def start(self) -> None:
        """Begin to listen."""
        self._cell.start()

    def stop(self) -> None:
        """Hang up."""
        self._cell.stop()

    def tidy(self) -> None:
        """Close the oldest connections of a certificate that holds more than it needs."""
        from nvflare.fuel.f3.drivers.driver_params import DriverParams

        seen: Counter[str] = Counter()
        for line in reversed(list(self._cell.communicator.conn_manager.sfm_conns.values())):
            name = str(line.conn.get_conn_properties().get(DriverParams.PEER_CN.value))
            seen[name] += 1
            if seen[name] > _LINES:
                line.conn.close()

    def _sieve(self, message: Any) -> Any:
        """None lets a message through; anything else drops it."""
        from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessageType

        sound = {
            MessageHeaderKey.MSG_TYPE: MessageType.REQ,
            MessageHeaderKey.DESTINATION: SERVER,
            MessageHeaderKey.CHANNEL: CHANNEL,
        }
        told = {name: message.get_header(name) for name in sound}
        if told != sound or message.get_header(MessageHeaderKey.TOPIC) not in TOPICS:
            return _dropped()
        return _unless_bytes(message)

    def _take(self, message: Any) -> Any:
        from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey, ReturnCode
        from nvflare.fuel.f3.cellnet.utils import make_reply

        name = str(message.get_prop(MessagePropKey.COMMON_NAME, ""))
        with self._lock:
            if self._busy[name] >= _AT_ONCE:
                return make_reply(ReturnCode.SERVICE_UNAVAILABLE)
            self._busy[name] += 1
        try:
            topic = message.get_header(MessageHeaderKey.TOPIC)
            reply = self._handle(name, topic, bytes(message.payload or b""))
        finally:
            with self._lock:
                self._busy[name] -= 1
        return make_reply(ReturnCode.OK, body=reply.encode())


class ClientCell:
    """A client's end, which asks and is never asked.

    Args:
        address: HOST:PORT of the server; its certificate has to name the host.
    """

    def __init__(self, kit: Kit, address: str, most: int) -> None:
        _configure(most, 1)
        from nvflare.fuel.f3.cellnet.core_cell import CoreCell

        self._cell: Any = CoreCell(kit.name, f"grpc://{address}", True, _credentials(kit))
        self._cell.add_incoming_filter("*", "*", self._sieve)

    def start(self) -> None:
        """Begin to connect, again and again."""
        self._cell.start()

    def stop(self) -> None:
        """Hang up."""
        self._cell.stop()

    def ask(self, topic: str, data: bytes, seconds: float = SECONDS) -> Reply:
        """Ask the server.

        Raises:
            Unreachable: it does not reply in time. FederatedError: it replies what it should not.
        """
        from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
        from nvflare.fuel.f3.message import Message

        found = self._cell.send_request(
            CHANNEL, topic, SERVER, Message({}, data), timeout=seconds, optional=True
        )
        code = found.get_header(MessageHeaderKey.RETURN_CODE)
        if code != ReturnCode.OK:
            raise Unreachable(f"the server does not reply ({code})")
        return decode_reply(bytes(found.payload or b""))

    def _sieve(self, message: Any) -> Any:
        from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessageType

        if message.get_header(MessageHeaderKey.MSG_TYPE) == MessageType.REQ:
            return _dropped()
        return _unless_bytes(message)


def _unless_bytes(message: Any) -> Any:
    """Drop what NVFlare would decode by its own object format, or decrypt."""
    from nvflare.fuel.f3.cellnet.defs import Encoding, MessageHeaderKey

    coded = message.get_header(MessageHeaderKey.PAYLOAD_ENCODING)
    secret = message.get_header(MessageHeaderKey.ENCRYPTED)
    return _dropped() if secret or coded not in (None, Encoding.NONE, Encoding.BYTES) else None


def _dropped() -> Any:
    from nvflare.fuel.f3.cellnet.defs import ReturnCode
    from nvflare.fuel.f3.cellnet.utils import make_reply

    return make_reply(ReturnCode.INVALID_REQUEST)


def _check_free(bind: str) -> None:
    """NVFlare says nothing where it cannot listen."""
    host, port = split_address(bind)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise SettingsError(
            f"cannot bind to {bind} ({error.strerror}): name another address of this machine by"
            " --bind HOST:PORT"
        ) from error
