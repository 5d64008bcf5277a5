"""Certificates for the nodes of a Ray cluster, made anew: an authority, and one for each node."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_PEM = serialization.Encoding.PEM


class Authority:
    """Signs certificates for a week; its own key stays in memory."""

    def __init__(self, name: str = "a cluster of the tests") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        self._certificate = self._builder(self._name, self._key).add_extension(
            constraints, critical=True
        ).sign(self._key, hashes.SHA256())  # fmt: skip

    def issue(self, folder: Path, *addresses: str, there: str = "") -> dict[str, str]:
        """Write a node's files; return what Ray reads from the environment.

        Args:
            there: the folder as the node knows it; "": as we do.
        """
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
        names: list[x509.GeneralName] = [x509.DNSName("localhost")]
        names += [x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", *addresses)]
        certificate = self._builder(name, key).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        ).sign(self._key, hashes.SHA256())  # fmt: skip
        private = key.private_bytes(
            _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files = {"RAY_TLS_SERVER_CERT": certificate.public_bytes(_PEM),
                 "RAY_TLS_SERVER_KEY": private,
                 "RAY_TLS_CA_CERT": self._certificate.public_bytes(_PEM)}  # fmt: skip
        env = {"RAY_USE_TLS": "1"}
        for variable, data in files.items():
            file = folder / f"{variable.lower()}.pem"
            file.touch(mode=0o600)
            file.write_bytes(data)
            env[variable] = f"{there or folder}/{file.name}"
        return env

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return x509.CertificateBuilder(
            self._name, name, key.public_key(), x509.random_serial_number(),
            now - timedelta(minutes=5), now + timedelta(7),
        )  # fmt: skip
