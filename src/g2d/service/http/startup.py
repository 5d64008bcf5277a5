"""What is settled before anything heavy is loaded: how a start ends, and that TLS will work."""

from __future__ import annotations

import importlib.util
import os
import signal
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from g2d.errors import G2DError, SettingsError

if TYPE_CHECKING:
    from g2d.service.http.options import Options
    from g2d.settings import ServeSettings

NOT_ENCRYPTED, ENCRYPTED_ONLY = "no", "only"
"""Of `[serve] encrypted`: no ciphertexts are answered; nothing else is."""

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


def check_access(options: Options, token: bytes | None) -> None:
    """Raise a `G2DError` unless the files that say who may ask are what their flags ask for.

    Args:
        token: the admin token, if there is one.
    """
    if not options.authenticated:
        return
    if options.jwks and token is not None and token.count(b".") == 2:
        raise SettingsError("the admin token looks like a JWT: give one without two dots")
    for flag, given, module, package in (
        ("--client-ca", options.client_ca, "cryptography", "cryptography"),
        ("--jwks", options.jwks, "cryptography", "cryptography"),
        ("--jwks", options.jwks, "jwt", "PyJWT"),
    ):
        if given and importlib.util.find_spec(module) is None:
            raise G2DError(f"{flag} needs {package}: pip install 'g2d[auth]'")
    from g2d.service.access.gate import Sources
    from g2d.service.access.tls import ServerTls

    Sources.of(options)
    if options.tls_cert:
        ServerTls(options, token is not None)


def refuse_on_ray(options: Options) -> None:
    """Raise a `SettingsError` if a cluster is to ask who asks: its proxies would let anybody in."""
    given = {"--client-ca": options.client_ca, "--jwks": options.jwks}
    if named := [flag for flag, value in given.items() if value]:
        raise SettingsError(
            f"{' and '.join(named)}: with --engine ray nobody would be asked who he is, for Ray"
            " Serve's proxies end TLS; leave it out and authenticate in a proxy before the cluster,"
            " or serve with --engine local"
        )


def refuse_policy_on_ray(serving: ServeSettings) -> None:
    """Raise a `SettingsError` if replicas would need several live generations: they have one."""
    if serving.policy != "global":
        raise SettingsError(
            f"[serve] policy is {serving.policy!r}, and with --engine ray only the newest"
            " generation is live: give --policy global, or serve with --engine local"
        )


def check_encrypted(serving: ServeSettings, ray: bool = False) -> None:
    """Raise a `G2DError` if ciphertexts are to be answered and cannot be, as it is set.

    Args:
        ray: replicas of a cluster would answer.
    """
    if serving.encrypted == NOT_ENCRYPTED:
        return
    told = ""
    if ray:
        told = "--engine ray answers no ciphertexts: serve with --engine local"
    elif serving.policy in ("keyed", "vote"):
        told = (
            f"[serve] policy is {serving.policy!r}, and a ciphertext is answered by one generation,"
            " chosen without its input: give --policy global, sticky or random"
        )
    elif serving.answers != "scores":
        told = (
            f"[serve] answers is {serving.answers!r}, and scores that nobody here can read cannot"
            " be changed: give --answers scores"
        )
    if told:
        raise SettingsError(f"{told}, or leave out --encrypted ([serve] encrypted)")
    for name in ("tenseal", "zstandard"):
        if importlib.util.find_spec(name) is None:
            raise G2DError(f"--encrypted needs {name}: pip install 'g2d[he]'")


def _read(name: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read --tls-{name} {file}: {error.strerror}") from error
