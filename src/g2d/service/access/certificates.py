"""Whose a verified client certificate is. That it is verified is TLS's work, in `tls`.

An identity is the certificate's SPIFFE ID (SPIFFE, "X.509-SVID"), else its first DNS or e-mail name
(RFC 5280, subject alternative names), else its common name. One with a SPIFFE ID that is wrong has
no identity: it must not pass under another of its names.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MOST = 2048  # bytes of a SPIFFE ID; of other names a quarter
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+")


class UnknownError(Exception):
    """A certificate or token does not say who asks; the text is for whoever sent it.

    Args:
        dear: to find out took work on keys.
    """

    def __init__(self, text: str, dear: bool = False) -> None:
        super().__init__(text)
        self.dear = dear


class Peer(NamedTuple):
    """Who is at the other end of a TLS connection.

    Attributes:
        name: the identity; empty where `wrong` says why there is none. begins, ends: seconds since
            1970 between which the certificate holds. trust: digest of what verified it.
    """

    name: str
    begins: float
    ends: float
    trust: str
    wrong: str = ""


def peer_of(certificate: bytes, trust: str) -> Peer:
    """Read a certificate in DER that TLS verified under `trust`."""
    from cryptography import x509

    try:
        read = x509.load_der_x509_certificate(certificate)
        begins = read.not_valid_before_utc.timestamp()
        ends = read.not_valid_after_utc.timestamp()
        name = _name(read)
    except UnknownError as error:
        return Peer("", 0.0, 0.0, trust, str(error))
    except Exception:  # whatever the library says of a malformed extension
        return Peer("", 0.0, 0.0, trust, "the client certificate cannot be read")
    return Peer(name, begins, ends, trust)


def _name(certificate: object) -> str:
    from cryptography import x509

    assert isinstance(certificate, x509.Certificate)
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = found.get_values_for_type(x509.UniformResourceIdentifier)
        names = [f"dns:{name}" for name in found.get_values_for_type(x509.DNSName)]
        names += [f"email:{name}" for name in found.get_values_for_type(x509.RFC822Name)]
    except x509.ExtensionNotFound:
        addresses, names = [], []
    if any(address.lower().startswith("spiffe:") for address in addresses):
        return spiffe(addresses)
    if not names:
        own = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        names = [f"cn:{each.value}" for each in own if isinstance(each.value, str)]
    if not names:
        raise UnknownError("the client certificate names nobody")
    return plain(names[0], "the client certificate's name")


def spiffe(addresses: list[str]) -> str:
    """Return the one SPIFFE ID among a certificate's URIs.

    Raises:
        UnknownError: there are others beside it, or it is none of a workload.
    """
    if len(addresses) != 1:
        raise UnknownError("the client certificate has more than one URI: one SPIFFE ID is allowed")
    (found,) = addresses
    dotted = any(part in (".", "..") for part in found.split("/"))
    if len(found) > _MOST or dotted or not _SPIFFE.fullmatch(found):
        raise UnknownError("the client certificate's SPIFFE ID is not spiffe://domain/path")
    return found


def plain(name: str, what: str) -> str:
    """Return a name that may stand in logs and files.

    Raises:
        UnknownError: it is too long, or holds what is not printed.
    """
    if len(name) > _MOST // 4 or not name.isprintable() or "*" in name:
        raise UnknownError(f"{what} is longer than {_MOST // 4} characters, or not plain text")
    return name
