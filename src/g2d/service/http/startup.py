"""What is settled before anything heavy is loaded: how a start ends, and that TLS will work."""

from __future__ import annotations

import os
import signal
import ssl
from pathlib import Path

from g2d.errors import SettingsError

_SAID = b"ended before it served: nothing was under way\n"


def leave(*_: object) -> None:
    """End the process with 0; for a signal that comes before the service answers.

    At once: an exception in the midst of an import may be taken for the import's own.
    """
    os.write(2, _SAID)
    os._exit(0)


def leave_on_sigterm() -> None:
    """Let SIGTERM end a start with 0, as it ends the service."""
    signal.signal(signal.SIGTERM, leave)


def check_tls(cert: str, key: str) -> None:
    """Raise a `SettingsError` that names the file unless they are a certificate and its key."""
    if not cert:
        return
    found = {name: _read(name, file) for name, file in (("cert", cert), ("key", key))}
    if b"CERTIFICATE-" not in found["cert"]:
        swapped = b"PRIVATE KEY-" in found["cert"] and b"CERTIFICATE-" in found["key"]
        hint = "; are --tls-cert and --tls-key swapped?" if swapped else ""
        raise SettingsError(f"--tls-cert {cert} holds no certificate in PEM{hint}")
    if b"PRIVATE KEY-" not in found["key"]:
        raise SettingsError(f"--tls-key {key} holds no private key in PEM")
    if b"ENCRYPTED" in found["key"]:
        raise SettingsError(f"--tls-key {key} is encrypted; give one without a passphrase")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        what = f"{key} is not the private key of {cert}"
        if "MISMATCH" not in str(error):
            what = f"{cert} and {key} cannot be used for TLS"
        raise SettingsError(f"{what} ({error.reason or 'not PEM'})") from None


def _read(name: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read --tls-{name} {file}: {error.strerror}") from error
