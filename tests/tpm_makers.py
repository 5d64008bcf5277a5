"""A maker of TPMs for tests: a root, an authority between, and certificates of endorsement keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from g2d.protect.tpm.publics import ENDORSEMENT_EC, ENDORSEMENT_RSA, Kind, key_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
_MODEL, _KIND_OF_KEY = ObjectIdentifier("2.23.133.2.2"), ObjectIdentifier("2.23.133.8.1")
_INDEX = {ENDORSEMENT_RSA: 0x01C00002, ENDORSEMENT_EC: 0x01C0000A}


class Maker:
    """Issues certificates. `pem`: what it publishes, root and authority."""

    def __init__(self, name: str = "Works") -> None:
        self._root, self._key = ec.generate_private_key(ec.SECP256R1()), None
        self.root = self._issue(f"{name} root", self._root, f"{name} root", self._root, ca=True)
        self._between = ec.generate_private_key(ec.SECP256R1())
        self._name = f"{name} authority"
        self.between = self._issue(self._name, self._between, f"{name} root", self._root, ca=True)

    @property
    def pem(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM) + self.between.public_bytes(Encoding.PEM)

    def certify(self, area: bytes, model: str = "T1000", **changes) -> bytes:
        """A certificate of an endorsement key, DER."""
        key = key_of(area, ENDORSEMENT_EC, ENDORSEMENT_RSA)
        names = x509.Name([x509.NameAttribute(_MODEL, model)])
        made = self._build(x509.Name([]), key, self._name, self._between, False, **changes)
        made = made.add_extension(
            x509.SubjectAlternativeName([x509.DirectoryName(names)]), critical=True
        ).add_extension(x509.ExtendedKeyUsage([_KIND_OF_KEY]), critical=False)
        return made.sign(self._between, hashes.SHA256()).public_bytes(Encoding.DER)

    def _issue(self, name, key, issuer, by, ca):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._build(subject, key.public_key(), issuer, by, ca)
        return made.sign(by, hashes.SHA256())

    def _build(self, subject, public, issuer, by, ca, start=NOW, days=36500):
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
        usage = x509.KeyUsage(
            not ca, False, False, False, not ca, ca, ca, False, False
        )  # fmt: skip
        made = x509.CertificateBuilder(
            issuer, subject, public, x509.random_serial_number(), start,
            start + timedelta(days=days),
        )  # fmt: skip
        return (
            made.add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
            )
        )


def put_certificate(device, kind: Kind, certificate: bytes) -> None:
    """Put a certificate where a TPM's maker puts it, filled up with zeros as some do."""
    tss, data = device.tss, certificate + bytes(8)
    attributes = "ownerwrite|ownerread|authread|no_da|authwrite"
    public = tss.TPMS_NV_PUBLIC(
        nvIndex=_INDEX[kind],
        nameAlg=tss.TPM2_ALG.SHA256,
        attributes=tss.TPMA_NV.parse(attributes),
        dataSize=len(data),
    )
    handle = device.esys.nv_define_space(b"", tss.TPM2B_NV_PUBLIC(nvPublic=public))
    for start in range(0, len(data), 512):
        device.esys.nv_write(handle, data[start : start + 512], start)
