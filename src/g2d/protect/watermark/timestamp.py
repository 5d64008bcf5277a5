"""Time stamps of RFC 3161: a third party's signed word that bytes were there at a time.

Asked for from a server (`[watermark] timestamp`) when a commitment is made; verified by anybody who
trusts the server's root certificate. The package is rfc3161-client, an extra of its own.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2d.core.exchange import ExchangeError, ask
from g2d.core.files import MOST_TEXT, read_plain
from g2d.errors import ClaimError, G2DError, KeyFileError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_QUERY, _REPLY = "application/timestamp-query", "application/timestamp-reply"


@dataclass(frozen=True)
class Stamp:
    """What a verified time stamp says: seconds since 1970, and who says so."""

    time: float
    authority: str


def request_stamp(url: str, data: bytes, roots: Sequence[Certificate]) -> bytes:
    """Ask a server for a time stamp of the SHA-256 of `data`; return its answer, verified (DER).

    Raises:
        ClaimError: the server cannot be reached, grants none, or it cannot be verified.
        G2DError: rfc3161-client is not installed.
    """
    library = _library()
    query = (
        library.TimestampRequestBuilder()
        .data(data)
        .hash_algorithm(library.HashAlgorithm.SHA256)
        .build()
    )
    try:
        reply = ask("POST", url, query.as_bytes(), {"Content-Type": _QUERY, "Accept": _REPLY})
    except ExchangeError as error:
        raise ClaimError(f"no time stamp: {error}; nothing was written, try again") from error
    if reply.status != 200:
        raise ClaimError(f"no time stamp: {url} answered {reply.said}")
    read_stamp(reply.body, data, roots, query.nonce)
    return reply.body


def read_stamp(
    token: bytes, data: bytes, roots: Sequence[Certificate], nonce: int | None = None
) -> Stamp:
    """Verify a server's answer over the SHA-256 of `data` under trusted root certificates.

    Raises:
        ClaimError: it is none, is of other bytes, or leads to no trusted root.
        G2DError: rfc3161-client is not installed.
    """
    library = _library()
    from cryptography.x509.oid import NameOID

    if not roots:
        raise ClaimError("a time stamp is verified by root certificates, and there are none here:"
                         " give --tsa, a PEM file of the timestamp server's root")  # fmt: skip
    try:
        answer = library.decode_timestamp_response(token)
        verifier = library.VerifierBuilder(roots=list(roots), nonce=nonce).build()
        verifier.verify_message(answer, data)
        signer = next(iter(answer.signed_data.signer_infos))
        named = signer.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        made = answer.tst_info.gen_time
    except (library.VerificationError, ValueError, StopIteration) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ClaimError(
            f"the time stamp is not verified ({words}): it is of other bytes, or --tsa has to name"
            " a PEM file of its server's root certificate"
        ) from error
    made = made if made.tzinfo else made.replace(tzinfo=UTC)
    return Stamp(made.timestamp(), str(named[0].value) if named else signer.issuer.rfc4514_string())


def roots_of(file: Path | None) -> list[Certificate]:
    """The root certificates in a PEM file; None: those that this system trusts servers by.

    Raises:
        KeyFileError: the file cannot be read, or holds none.
    """
    _library()
    from cryptography import x509

    if file is None:
        trusted = ssl.create_default_context().get_ca_certs(binary_form=True)
        return [found for der in trusted for found in _readable(der)]
    try:
        return x509.load_pem_x509_certificates(read_plain(file, MOST_TEXT, follow=True))
    except (OSError, ValueError) as error:
        raise KeyFileError(
            f"{file} holds no certificates ({error}): give a PEM file of the timestamp server's"
            " root certificate"
        ) from error


def _readable(der: bytes) -> list[Certificate]:
    """A certificate, unless it is one of the odd ones that cryptography does not read."""
    from cryptography import x509

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what others have put into the system's store
            return [x509.load_der_x509_certificate(der)]
    except ValueError:
        return []


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError as error:
        raise G2DError(
            "time stamps need the package rfc3161-client: pip install 'g2d[timestamp]'"
        ) from error
    return rfc3161_client
