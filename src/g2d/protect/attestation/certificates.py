"""Endorsement keys: whether their certificate chains up to a trusted root, and is no software's.

Chains are verified by `cryptography` (RFC 5280); what such certificates say is told in TCG EK
Credential Profile 2.5, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2d.errors import SealingError
from g2d.protect.tpm.documents import read
from g2d.protect.tpm.publics import ENDORSEMENT_EC, ENDORSEMENT_RSA, key_of

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["check_endorsement", "load_roots"]

_SOFTWARE = ("swtpm", "simulator", "emulator", "software")
_ADVICE = "or, for a software TPM in a test, add --insecure-software-tpm"


def load_roots(paths: Sequence[Path]) -> list[Certificate]:
    """Read certificates of those who make TPMs, PEM: roots, and what stands between."""
    from cryptography.x509 import load_pem_x509_certificates

    found: list[Certificate] = []
    for path in paths:
        try:
            found += load_pem_x509_certificates(read(path))
        except ValueError:
            raise SealingError(
                f"{path} holds no certificates in PEM: give the root, and what stands between, that"
                " the maker of the TPM publishes"
            ) from None
    return found


def check_endorsement(
    certificate: bytes, area: bytes, roots: Sequence[Certificate], now: datetime, insecure: bool
) -> bool:
    """Check that an endorsement key is one that a maker of TPMs vouches for.

    Args:
        certificate: DER; b"" where the TPM holds none. area: public area of the endorsement key.
        now: with a time zone. insecure: a software TPM, and one without a certificate, will do.

    Returns:
        Whether its maker was verified; False for what `insecure` alone lets pass.

    Raises:
        SealingError: it is not; in one line.
    """
    key = key_of(area, ENDORSEMENT_EC, ENDORSEMENT_RSA)
    if not certificate:
        if insecure:
            return False
        raise SealingError(
            f"the TPM holds no certificate of its endorsement key: take a host whose TPM has one,"
            f" {_ADVICE}"
        )
    parsed, certified, software = _parse(certificate)
    if certified != key:
        raise SealingError("the certificate is of another endorsement key: refused")
    if software:
        if insecure:
            return False
        raise SealingError(
            "the endorsement key is a software TPM's, whose owner can read every key in it:"
            f" take a host with a TPM of its own, {_ADVICE}"
        )
    if not roots and insecure:
        return False
    _check_chain(parsed, roots, now)
    return True


def _parse(certificate: bytes) -> tuple[Certificate, object, bool]:
    """A certificate, its key, and whether it says that it is a software TPM's."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509 import (
        DuplicateExtension,
        UnsupportedGeneralNameType,
        load_der_x509_certificate,
    )

    try:
        found = load_der_x509_certificate(certificate)
        return found, found.public_key(), _is_software(found)
    except (ValueError, UnsupportedAlgorithm, DuplicateExtension, UnsupportedGeneralNameType):
        raise SealingError("the certificate of the endorsement key is damaged: refused") from None


def _is_software(certificate: Certificate) -> bool:
    """Whether the certificate says so; one that lies is held up by its chain."""
    from cryptography.x509 import DirectoryName, ExtensionNotFound, SubjectAlternativeName

    names = [certificate.subject, certificate.issuer]
    try:
        alternative = certificate.extensions.get_extension_for_class(SubjectAlternativeName)
        names += alternative.value.get_values_for_type(DirectoryName)
    except ExtensionNotFound:
        pass
    said = " ".join(str(part.value) for name in names for part in name).lower()
    return any(word in said for word in _SOFTWARE)


def _check_chain(leaf: Certificate, roots: Sequence[Certificate], now: datetime) -> None:
    from cryptography.x509 import BasicConstraints, KeyUsage
    from cryptography.x509.verification import (
        Criticality,
        ExtensionPolicy,
        PolicyBuilder,
        Store,
        VerificationError,
    )

    anchors = [each for each in roots if each.subject == each.issuer]
    if not anchors:
        raise SealingError(
            "no root certificate was given: name the TPM maker's with --root, in PEM"
        )  # fmt: skip
    authority = (
        ExtensionPolicy.permit_all()
        .require_present(BasicConstraints, Criticality.AGNOSTIC, _is_authority)
        .may_be_present(KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
    )
    verifier = (
        PolicyBuilder()
        .store(Store(anchors))
        .time(now)
        .extension_policies(ca_policy=authority, ee_policy=ExtensionPolicy.permit_all())
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, [each for each in roots if each.subject != each.issuer])
    except VerificationError as error:
        raise SealingError(
            "the certificate of the endorsement key does not chain up to a root that was given"
            f" ({str(error).splitlines()[0][:160]}): give what stands between with --root, too"
        ) from error


def _is_authority(_policy: Any, _certificate: Any, constraints: Any) -> None:
    if not constraints.ca:
        raise ValueError("no authority")


def _signs_certificates(_policy: Any, _certificate: Any, usage: Any) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("may sign no certificates")
