"""Certificates and tokens as a test wants them: a CA, what it signs, and an issuer of JWTs."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUDIENCE, ISSUER = "g2d-service", "https://issuer.example"
PROD = "spiffe://example.org/ns/prod/client"
_USES = {"client": [ExtendedKeyUsageOID.CLIENT_AUTH], "server": [ExtendedKeyUsageOID.SERVER_AUTH]}


class Pair(NamedTuple):
    """A certificate and its key: files, and the certificate itself."""

    cert: str
    key: str
    read: x509.Certificate


def pem(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Authority:
    """A CA whose certificates lie in a folder; elliptic curves, so that it costs little."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self._made = folder, name, 0
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._subject, self._key.public_key(), -10, 10)
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        self.cert = self._written(f"{name}.pem", builder)[0]

    def issue(
        self, names: list[x509.GeneralName] = (), common: str = "", use: str = "client",
        days: tuple[float, float] = (-1, 1),
    ) -> Pair:  # fmt: skip
        self._made += 1
        key = ec.generate_private_key(ec.SECP256R1())
        common_name = [x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else []
        builder = self._builder(x509.Name(common_name), key.public_key(), *days)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if use:
            builder = builder.add_extension(x509.ExtendedKeyUsage(_USES[use]), critical=False)
        stem = f"{self.name}-{self._made}"
        cert, read = self._written(f"{stem}.pem", builder)
        (self.folder / f"{stem}.key").write_bytes(pem(key))
        return Pair(cert, str(self.folder / f"{stem}.key"), read)

    def workload(self, identity: str, **about: Any) -> Pair:
        return self.issue([x509.UniformResourceIdentifier(identity)], **about)

    def server(self) -> Pair:
        return self.issue([x509.DNSName("localhost")], use="server")

    def revoke(self, *pairs: Pair) -> str:
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(
            self._subject, now - timedelta(1), now + timedelta(1)
        )
        for pair in pairs:
            revoked = x509.RevokedCertificateBuilder(pair.read.serial_number, now - timedelta(1))
            builder = builder.add_revoked_certificate(revoked.build())
        signed = builder.sign(self._key, hashes.SHA256())
        path = self.folder / f"{self.name}.crl"
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return str(path)

    def _builder(
        self, subject: x509.Name, key: Any, first: float, last: float
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return x509.CertificateBuilder(
            self._subject, subject, key, x509.random_serial_number(),
            now + timedelta(first), now + timedelta(last),
        )  # fmt: skip

    def _written(self, name: str, builder: x509.CertificateBuilder) -> tuple[str, x509.Certificate]:
        signed = builder.sign(self._key, hashes.SHA256())
        path = self.folder / name
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return str(path), signed


class Issuer:
    """Signs tokens; `jwks` is what its file holds."""

    def __init__(self, *ids: str, kind: str = "ES256") -> None:
        self.kind = kind
        made = {"ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
                "EdDSA": ed25519.Ed25519PrivateKey.generate,
                "RS256": lambda: rsa.generate_private_key(65_537, 2048)}  # fmt: skip
        self.keys = {name: made[kind]() for name in ids or ("one",)}

    def public(self, name: str) -> dict[str, Any]:
        algorithm = jwt.get_algorithm_by_name(self.kind)
        row = json.loads(algorithm.to_jwk(self.keys[name].public_key()))
        return {**row, "kid": name, "use": "sig"}

    @property
    def jwks(self) -> dict[str, Any]:
        return {"keys": [self.public(name) for name in self.keys]}

    def write(self, path: Path) -> str:
        path.write_text(json.dumps(self.jwks))
        return str(path)

    def token(self, *roles: str, name: str = "one", **changes: Any) -> str:
        return jwt.encode(
            claims(*roles, **changes), self.keys[name], self.kind, headers={"kid": name}
        )


def claims(*roles: str, **changes: Any) -> dict[str, Any]:
    now = int(time.time())
    found = {"sub": "ann", "aud": AUDIENCE, "iss": ISSUER, "iat": now, "exp": now + 600,
             "roles": list(roles)} | changes  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}
