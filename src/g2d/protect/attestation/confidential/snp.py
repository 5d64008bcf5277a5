"""AMD SEV-SNP: a report of 1,184 bytes, signed by a processor's own key, which AMD certified.

Layout: "SEV Secure Nested Paging Firmware ABI Specification" (AMD 56860), table 23; certificates:
"Versioned Chip Endorsement Key Certificate and KDS Interface Specification" (AMD 57230). Verified
by `cryptography` alone: root (ARK) → ASK → VCEK → report. Not read: reports of processors that are
called Turin, whose security versions lie otherwise, and of keys of cloud providers (VLEK). AMD's
lists of revoked certificates are not asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from g2d.errors import SealingError
from g2d.protect.attestation.confidential.policy import Shown

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, ExtensionType, ObjectIdentifier

__all__ = ["verify"]

_SIZE, _SIGNED, _SCALAR = 0x4A0, 0x2A0, 72
_VERSIONS = (2, 3, 5)
_ECDSA_P384_SHA384 = 1
_DEBUG, _MIGRATES = 1 << 19, 1 << 18  # of the guest's policy
_MASKED, _SIGNER = 1 << 1, 0x1C  # of the flags: no chip is named; which key signed
_ARC = "1.3.6.1.4.1.3704.1."
_PRODUCT, _CHIP = _ARC + "2", _ARC + "4"
# Components: byte of the report's version, and the last part of the certificate's OID.
_COMPONENTS = {"bootloader": (0, "1"), "tee": (1, "2"), "snp": (6, "3"), "microcode": (7, "8")}
_LARGEST = 1 << 16  # bytes of a file of certificates


def verify(
    evidence: bytes, endorsements: Sequence[bytes], roots: Sequence[bytes], now: datetime
) -> Shown:
    """What a report says, once its signature chains up to a root.

    Args:
        evidence: the report. endorsements: the processor's certificate (VCEK), and what stands
            between (ASK), PEM or DER; from anywhere. roots: AMD's root (ARK) of the processor's
            line, PEM or DER, trusted. now: with a time zone.

    Raises:
        SealingError: it is not what a processor of AMD signed, in one line.
    """
    _check_form(evidence)
    with _readable():
        vcek = _endorsed([*_parsed(endorsements)], [*_parsed(roots)], now)
        _check_signature(evidence, vcek)
        firmware = _firmware(evidence, vcek)
    policy = _number(evidence, 0x8, 8)
    return Shown(
        kind="sev-snp",
        measurements={"measurement": evidence[0x90:0xC0]},
        data=evidence[0x50:0x90],
        debug=bool(policy & _DEBUG),
        migrates=bool(policy & _MIGRATES),
        firmware=firmware,
        machine=evidence[0x1A0:0x1E0].hex(),
        level=_number(evidence, 0x30, 4),
    )


def _number(report: bytes, at: int, size: int) -> int:
    return int.from_bytes(report[at : at + size], "little")


def _check_form(report: bytes) -> None:
    """Refuse what is no report whose signature could be a processor's own key's."""
    if len(report) != _SIZE:
        raise SealingError(
            f"it is no SEV-SNP report: {len(report)} bytes, expected {_SIZE} (raw, not in hex)"
        )
    version, algorithm = _number(report, 0, 4), _number(report, 0x34, 4)
    if version not in _VERSIONS or algorithm != _ECDSA_P384_SHA384:
        raise SealingError(
            f"it is no SEV-SNP report that G2D reads: version {version}, algorithm {algorithm}"
        )
    flags = _number(report, 0x48, 4)
    if flags & _SIGNER:
        raise SealingError(
            "the report was signed by another key than the processor's own (a cloud provider's"
            " VLEK): have the machine ask for one that the VCEK signs"
        )
    if flags & _MASKED:
        raise SealingError("the report names no processor (its chip's id is masked): refused")
    if any(report[_SIGNED + 2 * _SCALAR :]):
        raise SealingError("the report holds bytes behind its signature: it was changed")


# --- certificates --------------------------------------------------------------------------------


@contextmanager
def _readable() -> Iterator[None]:
    """Say in one line that a certificate is damaged: of one, parts are parsed when they are asked
    for."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.utils import CryptographyDeprecationWarning
    from cryptography.x509 import DuplicateExtension, InvalidVersion, UnsupportedGeneralNameType

    damage = (ValueError, TypeError, InvalidVersion, UnsupportedAlgorithm, DuplicateExtension,
              UnsupportedGeneralNameType)  # fmt: skip
    try:
        with warnings.catch_warnings():
            # AMD's own number of a VCEK is 0, which RFC 5280 forbids.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            yield
    except damage:
        raise SealingError(
            "a file of AMD's certificates is damaged: expected PEM or DER, as AMD's key"
            " distribution service gives them"
        ) from None


def _parsed(files: Sequence[bytes]) -> Iterator[Certificate]:
    """Certificates of files, each PEM with any number, or DER with one."""
    from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificates

    for data in files:
        if len(data) > _LARGEST:
            raise ValueError("too large")
        if b"-----BEGIN" in data:
            yield from load_pem_x509_certificates(data)
        else:
            yield load_der_x509_certificate(data)


def _endorsed(given: list[Certificate], roots: list[Certificate], now: datetime) -> Certificate:
    """The processor's certificate, of those that were given: the one that chains up to a root."""
    if not roots:
        raise SealingError("no root is trusted: give AMD's root certificate (ARK) with --root")
    leaves = [each for each in given if _name(each) == "SEV-VCEK"]
    if len(leaves) != 1:
        raise SealingError(
            f"expected one certificate of a processor (VCEK), and {len(leaves)} were given: fetch"
            " it from AMD's key distribution service, by the report's chip and versions"
        )
    for between in (each for each in (*given, *roots) if _is_authority(each)):
        for root in roots:
            path = (leaves[0], between, root)
            signed = _issued(root, root) and _issued(between, root) and _issued(path[0], between)
            if not signed or between == root or _is_authority(leaves[0]):
                continue
            if late := [each for each in path if not _is_timely(each, now)]:
                raise SealingError(f"AMD's certificate {_name(late[0])} is not valid at this time")
            return leaves[0]
    raise SealingError(
        "the processor's certificate does not chain up to a root that is trusted: give what stands"
        " between (ASK), too, and the root of the same line of processors"
    )


def _issued(certificate: Certificate, by: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_authority(certificate: Certificate) -> bool:
    from cryptography.x509 import BasicConstraints, ObjectIdentifier

    found = _extensions(certificate).get(ObjectIdentifier("2.5.29.19"))
    return isinstance(found, BasicConstraints) and found.ca


def _extensions(certificate: Certificate) -> Mapping[ObjectIdentifier, ExtensionType]:
    return {one.oid: one.value for one in certificate.extensions}


def _is_timely(certificate: Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _name(certificate: Certificate) -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _extension(certificate: Certificate, dotted: str) -> bytes:
    """What an extension of AMD's holds; b"": it is not there."""
    from cryptography.x509 import ObjectIdentifier, UnrecognizedExtension

    found = _extensions(certificate).get(ObjectIdentifier(dotted))
    return found.value if isinstance(found, UnrecognizedExtension) else b""


# --- the report under them -----------------------------------------------------------------------


def _check_signature(report: bytes, vcek: Certificate) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA384

    key = vcek.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise SealingError("the processor's certificate holds no key on P-384: refused")
    r, s = (_number(report, _SIGNED + at, _SCALAR) for at in (0, _SCALAR))
    try:
        key.verify(encode_dss_signature(r, s), report[:_SIGNED], ec.ECDSA(SHA384()))
    except InvalidSignature:
        raise SealingError(
            "the report was not signed by the processor whose certificate was given: it was"
            " changed, or is another one's"
        ) from None


def _firmware(report: bytes, vcek: Certificate) -> dict[str, int]:
    """Security versions of the report, which are those that its key was made for."""
    product = _extension(vcek, _PRODUCT).decode("ascii", "replace")
    if "Turin" in product:
        raise SealingError("the report is of a processor of the line Turin, which is not read yet")
    if _extension(vcek, _CHIP) != report[0x1A0:0x1E0]:
        raise SealingError("the certificate is of another processor than the report: refused")
    found = {}
    for name, (at, arc) in _COMPONENTS.items():
        told = _extension(vcek, f"{_ARC}3.{arc}")
        # DER: an INTEGER of at most 255, with a leading zero from 128 on.
        number = int.from_bytes(told[2:], "big") if told[:1] == b"\x02" else -1
        found[name] = report[0x180 + at]
        if number != found[name]:
            raise SealingError(
                f"the certificate is for {name} of security version {number}, and the report says"
                f" {found[name]}: refused"
            )
    return found
