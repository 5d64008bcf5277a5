"""A timestamp authority of the tests' own: RFC 3161 under a root that nobody else has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from asn1crypto import algos, cms, core, tsp
from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAME = "A root of the tests"


class Authority:
    """Answers queries; `at` is the time that it says, `changes` what it says wrong."""

    def __init__(self, at: datetime | None = None) -> None:
        self.at = at
        self._root = rsa.generate_private_key(65_537, 2048)
        self._key = self._root  # one key for both: certificates differ in what they allow
        self.root = self._certificate(NAME, leaf=False)
        self.leaf = self._certificate("A clock of the tests", leaf=True)

    def write(self, path: Path) -> Path:
        """The root certificate in PEM."""
        path.write_bytes(self.root.public_bytes(serialization.Encoding.PEM))
        return path

    def answer(self, query: bytes) -> bytes:
        """The DER answer to a DER query."""
        asked = tsp.TimeStampReq.load(query)
        info = tsp.TSTInfo({
            "version": "v1",
            "policy": "1.2.3.4.1",
            "message_imprint": asked["message_imprint"],
            "serial_number": 7,
            "gen_time": (self.at or datetime.now(UTC)).replace(microsecond=0),
            "nonce": asked["nonce"],
        })  # fmt: skip
        content = info.dump()
        signed = cms.SignedData({
            "version": "v3",
            "digest_algorithms": [{"algorithm": "sha256"}],
            "encap_content_info": {
                "content_type": "tst_info", "content": core.ParsableOctetString(content),
            },
            "certificates": [self._asn1(self.leaf)],
            "signer_infos": [self._signer(content)],
        })  # fmt: skip
        token = cms.ContentInfo({"content_type": "signed_data", "content": signed})
        return tsp.TimeStampResp(
            {"status": {"status": "granted"}, "time_stamp_token": token}
        ).dump()

    def _signer(self, content: bytes) -> cms.SignerInfo:
        def digest(data: bytes) -> bytes:
            sha = hashes.Hash(hashes.SHA256())
            sha.update(data)
            return sha.finalize()

        leaf = self._asn1(self.leaf)
        identified = tsp.ESSCertIDv2({
            "hash_algorithm": {"algorithm": "sha256"}, "cert_hash": digest(leaf.dump()),
        })  # fmt: skip
        attributes = cms.CMSAttributes([
            cms.CMSAttribute({"type": "content_type", "values": ["tst_info"]}),
            cms.CMSAttribute({"type": "message_digest", "values": [digest(content)]}),
            cms.CMSAttribute({
                "type": "signing_certificate_v2",
                "values": [tsp.SigningCertificateV2({"certs": [identified]})],
            }),
        ])  # fmt: skip
        signature = self._key.sign(attributes.dump(), padding.PKCS1v15(), hashes.SHA256())
        return cms.SignerInfo({
            "version": "v1",
            "sid": cms.SignerIdentifier({
                "issuer_and_serial_number": cms.IssuerAndSerialNumber({
                    "issuer": leaf.issuer, "serial_number": leaf.serial_number,
                })
            }),
            "digest_algorithm": algos.DigestAlgorithm({"algorithm": "sha256"}),
            "signed_attrs": attributes,
            "signature_algorithm": algos.SignedDigestAlgorithm({"algorithm": "sha256_rsa"}),
            "signature": signature,
        })  # fmt: skip

    def _certificate(self, name: str, leaf: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
        builder = x509.CertificateBuilder(
            issuer, subject, self._key.public_key(), x509.random_serial_number(),
            now - timedelta(days=4000), now + timedelta(days=10),
        )  # fmt: skip
        builder = builder.add_extension(x509.BasicConstraints(not leaf, None), critical=True)
        if leaf:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self._root, hashes.SHA256())

    @staticmethod
    def _asn1(certificate: x509.Certificate) -> asn1.Certificate:
        return asn1.Certificate.load(certificate.public_bytes(serialization.Encoding.DER))
