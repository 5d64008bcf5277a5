"""What listens on a host: asks every port what it speaks; run there, with the standard library.

    python probing.py HOST PORT...

One JSON object: by port, "TLS", "HTTP/2 without TLS", "HTTP without TLS" or "nothing".
"""

from __future__ import annotations

import json
import socket
import ssl
import sys

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HTTP = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
_PATIENCE = 3.0  # seconds


def speaks(host: str, port: int) -> str:
    """What whoever listens there answers to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), _PATIENCE) as line, context.wrap_socket(line):
            return "TLS"
    except (OSError, ValueError):
        pass
    if said(host, port, _PREFACE)[3:4] == b"\x04":  # a frame of settings
        return "HTTP/2 without TLS"
    return "HTTP without TLS" if said(host, port, _HTTP).startswith(b"HTTP/1") else "nothing"


def said(host: str, port: int, to: bytes) -> bytes:
    """What is answered first."""
    try:
        with socket.create_connection((host, port), _PATIENCE) as line:
            line.sendall(to)
            return line.recv(9)
    except OSError:
        return b""


if __name__ == "__main__":
    print(json.dumps({port: speaks(sys.argv[1], int(port)) for port in sys.argv[2:]}))
