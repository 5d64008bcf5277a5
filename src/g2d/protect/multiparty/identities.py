"""Certificates of parties, dealers and clients: each signs its own, and others pin it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from g2d.core.files import fill_file, write_bytes
from g2d.errors import G2DError
from g2d.protect.multiparty.config import certificates, fingerprint
from g2d.protect.multiparty.errors import MultipartyError

DAYS = 365


def make_identity(path: Path, days: float = DAYS, begins: float = -1 / 24) -> str:
    """Make a key (PATH.key, mode 600) and a certificate for it (PATH.pem); its fingerprint.

    ECDSA on P-256, signed by itself: who is let in is decided by what `parties.toml` pins.

    Args:
        days: for which it holds. begins: days from now; clocks differ by some minutes.

    Raises:
        MultipartyError: there is a file of that name. G2DError: cryptography is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise G2DError(
            "certificates need the package cryptography: pip install 'g2d[signing]'"
        ) from error
    certificate, key_file = path.with_suffix(".pem"), path.with_suffix(".key")
    for file in (certificate, key_file):
        if file.exists():
            raise MultipartyError(f"{file} exists already; name another")
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        fill_file(key_file, text, 0o600)
    except OSError as error:
        raise MultipartyError(f"cannot write {key_file}: {error}") from error
    write_bytes(certificate, built.public_bytes(serialization.Encoding.PEM))
    return fingerprint(certificates(certificate)[0])
