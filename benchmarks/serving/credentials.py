"""Who asks in a benchmark: a CA with a certificate for the service and one for a client, and JWTs.

All lies in one folder and holds for a day.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from benchmarks.serving.load import Tls

AUDIENCE, ISSUER = "g2d-benchmark", "https://issuer.example"
IDENTITY = "spiffe://example.org/ns/benchmark/load"
_ACCESS = f"""
[default]
queries = 1e8
burst = 1e8
bytes = 1e11
connections = 1000

[[allow]]
identity = "{IDENTITY}"
roles = ["infer"]

[[allow]]
identity = "jwt:*"
roles = ["infer"]
"""


class Credentials:
    """Files in `folder`: what a service is started with, and what clients bring."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._ca = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the benchmark's CA")])
        basic = x509.BasicConstraints(True, None)
        self._issue("ca", self._ca, self._name, [(basic, True)])
        self._signer = ec.generate_private_key(ec.SECP256R1())
        row = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(self._signer.public_key()))
        self.write("jwks.json", json.dumps({"keys": [row | {"kid": "one"}]}).encode())
        self.write("access.toml", _ACCESS.encode())
        for name, named, use in (
            ("server", x509.DNSName("localhost"), ExtendedKeyUsageOID.SERVER_AUTH),
            ("client", x509.UniformResourceIdentifier(IDENTITY), ExtendedKeyUsageOID.CLIENT_AUTH),
        ):
            own: list[tuple[Any, bool]] = [(x509.SubjectAlternativeName([named]), True),
                                           (x509.ExtendedKeyUsage([use]), False)]  # fmt: skip
            self._issue(name, ec.generate_private_key(ec.SECP256R1()), x509.Name([]), own)

    def path(self, name: str) -> str:
        """Where a file lies."""
        return str(self._folder / name)

    def server(self) -> list[str]:
        """Options of a service with TLS alone."""
        return ["--tls-cert", self.path("server.pem"), "--tls-key", self.path("server.key")]

    def by_token(self) -> list[str]:
        """Options of a service that takes tokens, with roles and quotas."""
        return ["--jwks", self.path("jwks.json"), "--jwt-audience", AUDIENCE, "--jwt-issuer",
                ISSUER, "--access", self.path("access.toml")]  # fmt: skip

    def guarded(self) -> list[str]:
        """The same with TLS and mTLS."""
        return [*self.server(), "--client-ca", self.path("ca.pem"), *self.by_token()]

    def tls(self, mutual: bool) -> Tls:
        """How a client meets the service; `mutual`: with its certificate."""
        own = (self.path("client.pem"), self.path("client.key")) if mutual else ("", "")
        return Tls(self.path("ca.pem"), *own)

    def tokens(self, count: int) -> list[str]:
        """JWTs of as many subjects."""
        now = int(time.time())
        claims = {"aud": AUDIENCE, "iss": ISSUER, "iat": now, "exp": now + 86_400}
        return [
            jwt.encode(claims | {"sub": f"load-{place}"}, self._signer, "ES256", {"kid": "one"})
            for place in range(count)
        ]

    def _issue(
        self, name: str, key: Any, subject: x509.Name, extensions: list[tuple[Any, bool]]
    ) -> None:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            self._name, subject, key.public_key(), x509.random_serial_number(),
            now - timedelta(hours=1), now + timedelta(days=1),
        )  # fmt: skip
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        pem = serialization.Encoding.PEM
        self.write(f"{name}.pem", builder.sign(self._ca, hashes.SHA256()).public_bytes(pem))
        own = key.private_bytes(pem, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())  # fmt: skip
        self.write(f"{name}.key", own)

    def write(self, name: str, data: bytes) -> None:
        """Write a file that only its owner reads."""
        path = Path(self.path(name))
        path.touch(0o600)
        path.write_bytes(data)
