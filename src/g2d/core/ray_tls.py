"""TLS between the nodes of a Ray cluster: what is wrong, said before Ray waits for a minute.

Ray reads four variables: RAY_USE_TLS=1, and the files RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY,
RAY_TLS_CA_CERT. Every node shows its certificate, as client and as server, and trusts those that
the CA signed. https://docs.ray.io/en/latest/ray-core/configure.html#tls-authentication
"""

from __future__ import annotations

import os
import socket
import ssl
import stat

from g2d.core.platforms import others_may_read
from g2d.errors import G2DError

_CERT, _KEY, _CA = _FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
_REACH = 5.0  # seconds to reach a cluster's address; Ray itself would try for a minute
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a gRPC client says first: HTTP/2's preface and empty settings (RFC 9113, 3.4)."""


def wanted() -> bool:
    """Whether Ray is told to use TLS."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def check_files() -> None:
    """Raise a `G2DError` if Ray is told to use TLS, and cannot; Ray would say so in its logs."""
    if wanted():
        _context()


def greet(host: str, port: int) -> None:
    """Find out whether a cluster's head would talk to this machine.

    Raises:
        G2DError: one of the two wants TLS and the other none, or does not trust the other's
            certificate. OSError: nobody listens there.
    """
    where = f"the Ray cluster at {host}:{port}"
    with socket.create_connection((host, port), _REACH) as line:
        if not wanted():
            _greet_plain(line, where)
            return
        shaken = False
        try:
            with _context().wrap_socket(line, server_hostname=host) as secure:
                shaken = True
                _hear(secure)
        except ssl.SSLCertVerificationError as error:
            told = error.verify_message.rstrip(".")
            raise G2DError(
                f"{where} shows a certificate that is not trusted here ({told}): {_CA} must be the"
                f" authority that signed it, and it must name {host} (subjectAltName)"
            ) from error
        except (ssl.SSLError, ConnectionError) as error:
            if shaken or "ALERT" in (getattr(error, "reason", "") or ""):
                raise G2DError(
                    f"{where} refuses the certificate in {_CERT}={os.environ[_CERT]}: have it"
                    " signed by the authority that the cluster's nodes trust"
                ) from error
            raise G2DError(
                f"{where} speaks no TLS, and RAY_USE_TLS is set here: set it, with {_names()}, on"
                " every node before `ray start`, or nowhere"
            ) from error


def _greet_plain(line: socket.socket, where: str) -> None:
    try:
        _hear(line)
    except (ssl.SSLError, ConnectionError) as error:
        raise G2DError(
            f"{where} does not talk without TLS: set RAY_USE_TLS=1 and {_names()}, as on its nodes"
        ) from error


def _hear(line: socket.socket) -> None:
    """Say what gRPC says, and hear settings; whoever wants TLS, or other TLS, hangs up.

    Raises:
        ConnectionError: the other side hung up, or answered something else.
    """
    line.settimeout(_REACH)
    try:
        line.sendall(_HTTP2)
        said = line.recv(9)
    except TimeoutError:
        return  # no verdict: Ray finds out
    if len(said) < 4 or said[3] != 4:  # a frame's type; 4: settings
        raise ConnectionResetError("it hung up")


def _context() -> ssl.SSLContext:
    missing = [name for name in _FILES if not os.environ.get(name)]
    if missing:
        raise G2DError(f"RAY_USE_TLS is set, and {' and '.join(missing)} is not: {_names()} are"
                       " needed")  # fmt: skip
    files = {name: os.environ[name] for name in _FILES}
    name = _KEY
    try:
        if others_may_read(stat.S_IMODE(os.stat(files[_KEY]).st_mode)):
            raise G2DError(
                f"{_KEY}={files[_KEY]} is open to others: run `chmod 600 {files[_KEY]}` first"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(files[_CERT], files[_KEY], password="")
        name = _CA
        context.load_verify_locations(files[_CA])
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        if name == _KEY:
            name = f"{_CERT}={files[_CERT]} or {_KEY}"
        told = getattr(error, "strerror", None) or error
        raise G2DError(
            f"{name}={files[_CA if name == _CA else _KEY]} cannot be used ({told}): Ray needs a"
            " certificate, its private key without a passphrase, and the authority's certificate,"
            " all in PEM"
        ) from error
    context.set_alpn_protocols(["h2"])
    return context


def _names() -> str:
    return f"{_CERT}, {_KEY} and {_CA}"
