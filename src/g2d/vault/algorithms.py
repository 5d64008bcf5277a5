"""Algorithms of public keys that sign manifests: Ed25519, and ECDSA on P-256 with SHA-256.

The second is for keys that lie in a TPM, which rarely does the first. The key alone says which is
used: nothing that is signed, and no signature, chooses one. Both signatures have 64 bytes; of
ECDSA's two for one message, (r, s) and (r, n - s), the one with the lower s alone is taken, so that
nobody makes another of one that was signed. `cryptography` is imported when a key is used.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    PublicKey = Ed25519PublicKey | EllipticCurvePublicKey

__all__ = [
    "ED25519",
    "P256",
    "algorithm_of",
    "fingerprint",
    "from_raw",
    "joined",
    "raw",
    "verifies",
]

ED25519, P256 = "ed25519", "ecdsa-p256-sha256"

_HALF = 32  # bytes of r, and of s
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # SEC 2, 2.4.2


def algorithm_of(key: Any) -> str:
    """The algorithm of a public key; "": it is of none that signs here."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ed25519.Ed25519PublicKey):
        return ED25519
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return P256
    return ""


def raw(key: PublicKey) -> bytes:
    """The bytes of a public key: 32 of Ed25519, 33 of P-256 (its point, compressed)."""
    from cryptography.hazmat.primitives import serialization as s

    if algorithm_of(key) == ED25519:
        return key.public_bytes(s.Encoding.Raw, s.PublicFormat.Raw)
    return key.public_bytes(s.Encoding.X962, s.PublicFormat.CompressedPoint)


def from_raw(data: bytes) -> PublicKey:
    """The key that has these bytes; raises `ValueError` where they are none."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if len(data) == _HALF + 1:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), data)
    return ed25519.Ed25519PublicKey.from_public_bytes(data)


def fingerprint(key: PublicKey) -> str:
    """What people tell keys by: the algorithm, unless it is Ed25519, and SHA-256 of `raw`."""
    kind = "p256-" if algorithm_of(key) == P256 else ""
    return f"{kind}sha256:{hashlib.sha256(raw(key)).hexdigest()}"


def verifies(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether a key signed a message, by its own algorithm; signature: 64 bytes."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    if len(signature) != 2 * _HALF:
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            r, s = (int.from_bytes(half, "big") for half in _halves(signature))
            if not (0 < r < _ORDER and 0 < s <= _ORDER // 2):
                return False
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def joined(r: int, s: int) -> bytes:
    """A signature of ECDSA as it is kept: r, and the lower of s and n - s; 64 bytes."""
    return r.to_bytes(_HALF, "big") + min(s, _ORDER - s).to_bytes(_HALF, "big")


def _halves(signature: bytes) -> tuple[bytes, bytes]:
    return signature[:_HALF], signature[_HALF:]
