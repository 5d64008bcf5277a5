"""The service's TLS: certificate and client CA, read again as their files change.

Each new connection takes the newest context; what was verified under other CAs says so by `trust`.
"""

from __future__ import annotations

import hashlib
import ssl

from g2d.errors import SettingsError
from g2d.service.access.certificates import Peer
from g2d.service.access.files import Contents, Watched
from g2d.service.http.options import Options
from g2d.service.http.startup import check_tls

_CA, _CRL = "--client-ca", "--client-crl"


class Context(ssl.SSLContext):
    """A context that says what it trusts: a digest of the client CA and of what is revoked."""

    trust = ""


class ServerTls:
    """TLS as the options say.

    Clients without a certificate are let in where there is another way to say who asks.

    Args:
        token: whether an operator may come with the admin token.

    Raises:
        SettingsError: a file cannot be read, or is not what its flag asks for.
    """

    def __init__(self, options: Options, token: bool = False) -> None:
        self._options = options
        self._must = bool(options.client_ca) and not (options.jwks or token)
        named = {"--tls-cert": options.tls_cert, "--tls-key": options.tls_key,
                 _CA: options.client_ca, _CRL: options.client_crl}  # fmt: skip
        self.files: Watched[Context] = Watched(named, self._make)

    def current(self) -> ssl.SSLContext:
        """Return the context for a connection that begins now."""
        return self.files.value

    @property
    def trust(self) -> str:
        """What certificates of clients are verified under now."""
        return self.files.value.trust

    def holds(self, peer: Peer) -> bool:
        """Whether what verified a certificate is what verifies certificates now."""
        return peer.trust == self.trust

    def _make(self, contents: Contents) -> Context:
        options = self._options
        check_tls(options.tls_cert, options.tls_key)
        context = Context(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls_cert, options.tls_key, password="")
        if not options.client_ca:
            return context
        _load(context, _CA, options.client_ca, contents[_CA], b"CERTIFICATE-")
        if not context.get_ca_certs():
            raise SettingsError(f"{_CA} {options.client_ca} holds no certificate of a CA")
        if options.client_crl:
            _load(context, _CRL, options.client_crl, contents[_CRL], b"X509 CRL-")
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        # OpenSSL verifies for the purpose sslclient: one for servers alone (RFC 5280, 4.2.1.12) is
        # refused in the handshake.
        context.verify_mode = ssl.CERT_REQUIRED if self._must else ssl.CERT_OPTIONAL
        together = b"".join(
            hashlib.sha256(contents.get(flag, b"")).digest() for flag in (_CA, _CRL)
        )
        context.trust = hashlib.sha256(together).hexdigest()
        return context


def _load(context: Context, flag: str, file: str, data: bytes, mark: bytes) -> None:
    if mark not in data:
        what = "certificate" if flag == _CA else "list of revoked certificates"
        raise SettingsError(f"{flag} {file} holds no {what} in PEM")
    try:
        context.load_verify_locations(cafile=file)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or "not PEM"
        raise SettingsError(f"{flag} {file} cannot be used ({reason})") from None
